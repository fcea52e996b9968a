"""Settings of the method, one frozen dataclass per stage: identify, refine, guide.

The defaults are the preset ``paper``: the text of arXiv 2604.08546 with its published values for Wan2.1 at 50 steps.
``configs/method/*.yaml`` lists every preset in full. Lengths and areas are in tokens (one token = one patch of a latent
frame) of a frame of ``MethodConfig.grid`` tokens, shares in [0, 1]. The classes hold plain types only, so
``OmegaConf.structured(MethodConfig)`` takes them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any, Literal, get_args

from numina.choices import choices_of
from numina.errors import ConfigError

_SHARE_SLACK = 1e-9  # 0.29 * 100 is 28.999…: without it a share that means a whole number would round down
_TIME_SLACK = 1e-3  # of the schedule: times come from noise levels, whose sixth digit a sampler rounds

Cache = Literal["none", "taylorseer", "magcache", "first_block", "cfg_cache"]  # of steps
LONGEST, LARGEST = 1000, 1_000_000  # tokens across and in a frame, beyond any clip's

FUSED_ONLY = ("affinity", "evidence")  # settings of identification
ScheduleBy = Literal["noise", "index"]  # what a share of the schedule is: a noise level, or a number of steps
TokenSet = Literal["noun", "phrase", "first"]  # all mentions of the noun, with their modifiers, or the first mention


@dataclass(frozen=True, kw_only=True)
class IdentifyConfig:
    """Where attention is read and how it becomes instances (arXiv 2604.08546 §3.2)."""

    # [share of the schedule: schedule_by] t*: attention is read at the first step that is as late (published: 20 of 50)
    step: float = 0.4
    # [steps] up to t*, run every stride-th step (published: 1); above 1 the plain clip changes a little
    stride: int = 1
    block: float = 0.5  # [share of the depth] l*, the first block that is read (published: block 15 of 30)
    # [blocks] that are read, spread evenly from l* to the last; 0: all of these (ours; published: l* alone)
    blocks: int = 1
    # several blocks are combined by their mean, or only the block that is steadiest over frames is used (ours)
    combine: Literal["mean", "steadiest"] = "mean"
    cache: str = "none"  # step cache up to t* (pipelines/README.md); the step at t* is always computed (ours)
    # instances come from clusters (PCA and mean shift of self-attention; published), from peaks of cross-attention
    # (ours), or from both, fused: peaks joined and cut by self-attention's affinity (ours)
    source: Literal["clusters", "peaks", "fused"] = "clusters"
    # text tokens whose response is read: the noun (published), its whole phrase, or its first mention (released code)
    tokens: TokenSet = "noun"
    # cross-attention head of a noun: highest peak per frame (published), highest peak of the clip, or the mean of all
    # heads
    head: Literal["peak_frame", "peak_clip", "mean"] = "peak_frame"

    contrast_weight: float = 1.0  # α, weight of S1, the spread of a head's grey image (published)
    structure_weight: float = 1.0  # β, weight of S2, the variance of block sums (published)
    edge_weight: float = 0.1  # γ, weight of S3, the mean Sobel magnitude (published)
    structure_blocks: int = 8  # [blocks per side] g, the grid of S2 (published)

    bandwidth_quantile: float = 0.2  # [quantile, 0 to 1] of distances, for mean shift's bandwidth (published)
    focus: float = 0.05  # [share of the peak response] ρ, above which a token is in the focus mask (published)
    dbscan_eps: float = 3.0  # [tokens] radius of DBSCAN on the focus mask (published)
    dbscan_min_samples: int = 5  # [tokens] density of DBSCAN on the focus mask (published)
    min_focus: float = 0.2  # [share of a cluster] τ, that must lie in the focus mask (published)
    connected: bool = False  # split clusters into connected components (ours; published: no)

    absence: float = 0.0  # [share of the strongest noun's peak] peaks: below it a noun is absent (ours)
    threshold: float = 0.5  # [share of the clip's peak] peaks: that an instance's own peak must reach (ours)
    prominence: float = 0.2  # [share of a peak] peaks: by which the response must fall before the next instance (ours)
    extent: float = 0.2  # [share of the clip's peak] peaks: down to which the surroundings belong to an instance (ours)
    # [cosine] fused: below which two parts of the response are two things (ours)
    affinity: float = 0.75
    # [share of the clip's typical evidence] fused: that an instance must have (ours)
    evidence: float = 0.36
    exclusive: bool = True  # a token belongs to at most one noun; false: each noun is read on its own (released code)
    min_area: int = 1  # [tokens] smaller pieces are dropped; 1: keep all (published)
    tracks: bool = False  # link instances over frames and decide once per clip (ours; published: per frame)
    # [tokens] tracks: farthest move of an instance's centroid between two latent frames (ours)
    link_distance: float = 3.0
    min_presence: float = 0.5  # [share of the frames] tracks: in which a track must be seen, or it is dropped (ours)

    def __post_init__(self) -> None:
        _share(self, "step", "block", "bandwidth_quantile", "focus", "min_focus", "threshold", "extent", "min_presence")
        _share(self, "prominence", "absence", "affinity", "evidence")
        _at_least(self, 0, "contrast_weight", "structure_weight", "edge_weight", "link_distance", "blocks")
        _at_least(self, 1, "structure_blocks", "dbscan_min_samples", "min_area", "stride")
        _above_zero(self, "dbscan_eps")
        _one_of_its_choices(self)
        _one_of(self, "cache", get_args(Cache))
        _at_most(self, LONGEST, "dbscan_eps", "link_distance", "blocks", "structure_blocks", "stride")
        _at_most(self, LARGEST, "dbscan_min_samples", "min_area")
        if self.blocks != 1 and self.source == "clusters":
            raise _out_of_range(self, "blocks", self.blocks, "must be 1 where source is clusters: one block clusters")

    def capture_step(self, times: Sequence[float]) -> int:
        """Index (from 0) of the denoising step whose attention is read: the first at t* or later, else the last.

        Not the nearest: in few steps an earlier one shows much less (8 steps: 0.82 of the clips read right at 0.375,
        0.96 at 0.5).
        """
        return next((step for step, time in enumerate(times) if time >= self.step - _TIME_SLACK), len(times) - 1)

    def schedule(self, times: Sequence[float]) -> list[int]:
        """Steps that are run, of these: every ``stride``-th up to the captured one, and all from there on."""
        reference = self.capture_step(times)
        return [*range(0, reference, self.stride), *range(reference, len(times))]

    def capture_blocks(self, depth: int) -> list[int]:
        """Indices (from 0) of the transformer blocks whose attention is read, for a model of ``depth`` blocks."""
        first = min(depth - 1, int(self.block * depth + _SHARE_SLACK))
        if self.blocks == 1:
            return [first]
        number = min(self.blocks, depth - first) or depth - first
        return sorted({int(first + (depth - 1 - first) * i / max(1, number - 1) + 0.5) for i in range(number)})

    @property
    def needs_self_attention(self) -> bool:
        """Whether the capture looks at self-attention, too, or cross-attention alone is enough."""
        return self.source != "peaks"


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How a layout is changed to the asked counts (arXiv 2604.08546 §3.3)."""

    disc_radius: float = 5.0  # [tokens] r, radius of an added disc if there is no instance to copy (published)
    center_weight: float = 1.0  # [cost per squared token] λc, for the distance from the noun's own centre (published)
    temporal_weight: float = 8.0  # [cost per squared token] λt, for movement between latent frames (published)
    max_move: float = 2.0  # [tokens per axis] that an added track may move between latent frames (ours)
    # [tokens] kept free around an added instance, so that it can be counted; 0: instances may touch (ours)
    margin: int = 1
    # room: never on another instance (ours); released: as in the authors' code
    placement: Literal["room", "released"] = "room"

    def __post_init__(self) -> None:
        _at_least(self, 0, "disc_radius", "center_weight", "temporal_weight", "max_move", "margin")
        _one_of_its_choices(self)
        _at_most(self, LONGEST, "disc_radius", "max_move", "margin")


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """How cross-attention is biased while the clip is generated again (arXiv 2604.08546 §3.4)."""

    remove: float = 10.0  # [strength, × δ] s, subtracted from the scores of removed instances (published)
    add: float = 0.8  # [strength, × δ] k, added to the scores of added instances (published)
    keep: float = 0.0  # [strength, × δ] κ, added to the scores of kept instances (ours; published: none)
    # [strength, × δ] β, subtracted from a noun's scores wherever it has no instance (ours; published: none)
    elsewhere: float = 0.0
    # [strength, × δ] o, subtracted from the other nouns' scores where an instance is added (ours; published: none)
    other: float = 0.0
    # copies take the mean score of their reference: per head, if above their own (published; the limit is ours), global
    # (released code, no limit), or none (ours)
    overwrite: Literal["none", "head", "global"] = "head"
    # text tokens whose scores are biased: the noun (published), its whole phrase, or its first mention (released code)
    tokens: TokenSet = "noun"
    schedule: Literal["tanh", "constant"] = "tanh"  # δ over the steps: tanh (published), or constant (ours)
    # of the strengths: score (published), or deviation: standard deviations of the model's own scores (ours)
    unit: Literal["score", "deviation"] = "score"
    # [score or deviation] δ of the constant schedule (ours; the tanh schedule starts at this value)
    strength: float = 1.75
    until: float = 1.0  # [share of the schedule: schedule_by] up to which steps are guided (published: all)
    # [share of the schedule: schedule_by] from where the guided run is made, off the plain run's state at the last step
    # that is as early; 0: from the noise, everything up to t* twice (published)
    start: float = 0.0
    # [tokens] from an edit, beyond which the clip is held to the plain one up to t*; null: nowhere (ours)
    anchor: int | None = None
    # [confidence, 0 to 1] of the reading of a noun, below which a clip that needs edits of it is left as it is; 0:
    # guide always (ours)
    confidence: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self, 0, "remove", "add", "keep", "elsewhere", "other", "strength")
        _share(self, "until", "confidence", "start")
        if self.anchor is not None:
            _at_least(self, 0, "anchor")
            _at_most(self, LONGEST, "anchor")
        _one_of_its_choices(self)

    def first_step(self, times: Sequence[float]) -> int:
        """Index (from 0) of the guided run's first step: of the steps that are guided, the last at `start` or before.

        Not the nearest: from a later one, much of the layout is settled (8 steps, `quick`: CountAcc 0.904 from 0.25,
        0.976 from 0.125).
        """
        guided = sum(time < self.until for time in times) or 1
        return max((step for step in range(guided) if times[step] <= self.start + _TIME_SLACK), default=0)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The method: its preset, the frame that its lengths are given for, and its three stages."""

    # the file in configs/method/ that the values below start from, by its name; or a YAML file of the same form, as
    # `numina calibrate` writes one (short: method=FILE.yaml)
    preset: str = "paper"
    # [tokens] of the frame that lengths and areas are given for; they scale with the clip's (1560: 30 × 52 at 480p);
    # 0: never
    grid: int = 1560
    # what a share of the schedule is, for t* and δ: index, a number of steps (published); noise, the noise level that
    # the model's native schedule has there, whatever the flow shift (ours)
    schedule_by: ScheduleBy = "index"
    identify: IdentifyConfig = field(default_factory=IdentifyConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)

    def __post_init__(self) -> None:
        _at_least(self, 0, "grid")
        _at_most(self, LARGEST, "grid")
        _one_of_its_choices(self)
        if self.guide.anchor is not None and self.identify.stride > 1:
            raise ConfigError(
                f"method.guide.anchor = {self.guide.anchor} holds clips to the plain one at every step, but"
                f" method.identify.stride = {self.identify.stride} skips steps: use stride 1, or anchor null"
            )
        if self.guide.start and self.guide.anchor is None:
            raise ConfigError(
                f"method.guide.start = {self.guide.start} needs the plain run's states, but"
                " without method.guide.anchor none are kept: use start 0, or an anchor, e.g. 1"
            )
        for name, end in (("identify.step", self.identify.step), ("guide.until", self.guide.until)):
            if self.guide.start > end:
                raise ConfigError(
                    f"method.guide.start = {self.guide.start} is after method.{name} = {end}: no such state is kept and"
                    f" guided; use a start of at most {end}"
                )

    def named(self) -> dict[str, Any]:
        """The settings that decide what comes out, for names of outputs: without the preset, which is a label.

        Settings that came after the first outputs are left out where they change nothing: names stay. A rule that has
        changed since has another name.
        """
        named = asdict(self)
        del named["preset"]
        if self.schedule_by == "noise":
            del named["schedule_by"]
        for name in ("confidence", "start"):
            if named["guide"][name] == 0:
                del named["guide"][name]
        if self.guide.overwrite == "head":
            named["guide"]["overwrite"] = "head, never below the own score"
        if self.identify.source != "fused":
            for name in FUSED_ONLY:
                del named["identify"][name]
        return named

    def scaled_to(self, tokens: int) -> "MethodConfig":
        """The same method, given for frames of so many tokens: lengths go with √tokens, areas with tokens.

        A head's S2 is a variance of sums over areas, and its S3 a slope over a length: their weights go the other way,
        so that the same image scores the same. Costs per squared token stand against overlaps, which are areas: both
        grow alike, and the choice is the same.
        """
        if self.grid in (0, tokens):
            return self
        area = tokens / self.grid
        side = sqrt(area)
        identify, refine, guide = self.identify, self.refine, self.guide
        return replace(
            self,
            grid=tokens,
            identify=replace(
                identify,
                structure_weight=identify.structure_weight / area**2,
                edge_weight=identify.edge_weight * side,
                dbscan_eps=identify.dbscan_eps * side,
                dbscan_min_samples=_whole(identify.dbscan_min_samples, area),
                min_area=_whole(identify.min_area, area),
                link_distance=identify.link_distance * side,
            ),
            refine=replace(
                refine,
                disc_radius=refine.disc_radius * side,
                max_move=refine.max_move * side,
                margin=_whole(refine.margin, side),
            ),
            guide=replace(guide, anchor=None if guide.anchor is None else _whole(guide.anchor, side)),
        )


def _whole(tokens: int, scale: float) -> int:
    """Scaled and rounded; what isn't 0 stays at least 1."""
    return max(min(tokens, 1), int(tokens * scale + 0.5))


def _share(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0.0 <= value <= 1.0:
            raise _out_of_range(config, name, value, "must be a share from 0 to 1")


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not least <= value < float("inf"):
            raise _out_of_range(config, name, value, f"must be finite and at least {least}")


def _at_most(config: object, most: int, *names: str) -> None:
    for name in names:
        if not getattr(config, name) <= most:
            raise _out_of_range(config, name, getattr(config, name), f"must be at most {most:,}")


def _above_zero(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0.0 < value < float("inf"):
            raise _out_of_range(config, name, value, "must be finite and above 0")


def _one_of_its_choices(config: Any) -> None:
    for name, choices in choices_of(config.__class__).items():
        _one_of(config, name, choices)


def _one_of(config: object, name: str, choices: Sequence[str]) -> None:
    if (value := getattr(config, name)) not in choices:
        raise _out_of_range(config, name, value, f"must be one of {', '.join(choices)}")


def _out_of_range(config: object, name: str, value: object, rule: str) -> ConfigError:
    stage = "" if isinstance(config, MethodConfig) else f".{type(config).__name__.removesuffix('Config').lower()}"
    published = type(config).__dataclass_fields__[name].default  # type: ignore[attr-defined]
    return ConfigError(f"method{stage}.{name} = {value!r}, but it {rule}; the preset paper has {published!r}")
