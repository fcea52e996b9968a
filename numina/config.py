"""Settings of the method, one frozen dataclass per stage: identify, refine, guide.

The defaults are the preset ``paper``: the text of arXiv 2604.08546 with its published values for Wan2.1 at 50 steps.
``configs/method/*.yaml`` lists every preset in full. Lengths and areas are in tokens (one token = one patch of a latent
frame) of a frame of ``MethodConfig.grid`` tokens, shares in [0, 1]. The classes hold plain types only, so
``OmegaConf.structured(MethodConfig)`` takes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Literal

from numina.choices import choices_of
from numina.errors import ConfigError

_SHARE_SLACK = 1e-9  # 0.29 * 100 is 28.999…: without it a share that means a whole number would round down

Cache = Literal["none", "taylorseer", "magcache", "first_block", "cfg_cache"]  # of steps
TokenSet = Literal["noun", "phrase", "first"]  # all mentions of the noun, with their modifiers, or the first mention


@dataclass(frozen=True, kw_only=True)
class IdentifyConfig:
    """Where attention is read and how it becomes instances (arXiv 2604.08546 §3.2)."""

    step: float = 0.4  # t*, share of the native schedule (published: step 20 of 50)
    stride: int = 1  # every how many steps one is run, up to t* (published: 1); above 1 the plain clip changes a little
    block: float = 0.5  # l*, share of the depth (published: block 15 of 30)
    blocks: int = 1  # how many blocks are read, evenly from l* to the last; 0: all of these (ours; published: l* alone)
    combine: Literal["mean", "steadiest"] = "mean"  # of several blocks: their mean, or the one steadiest over frames
    cache: Cache = "none"  # step cache up to t* (pipelines/sampling/cache.py); the captured step is always computed
    source: Literal["clusters", "peaks"] = "clusters"  # clusters: self-attention PCA + mean shift (published)
    tokens: TokenSet = "noun"  # whose response is read: the noun's tokens (published) or its whole phrase's
    head: Literal["peak_frame", "peak_clip", "mean"] = "peak_frame"  # cross-attention head of a noun (published: peak)

    contrast_weight: float = 1.0  # α, weight of S1, the spread of a head's grey image (published)
    structure_weight: float = 1.0  # β, weight of S2, the variance of block sums (published)
    edge_weight: float = 0.1  # γ, weight of S3, the mean Sobel magnitude (published)
    structure_blocks: int = 8  # g, blocks per side for S2 (published)

    bandwidth_quantile: float = 0.2  # mean shift: quantile for the estimated bandwidth (published)
    focus: float = 0.05  # ρ, share of the peak response above which a token is in focus (published)
    dbscan_eps: float = 3.0  # tokens, DBSCAN radius on the focus mask (published)
    dbscan_min_samples: int = 5  # tokens, DBSCAN density on the focus mask (published)
    min_focus: float = 0.2  # τ, share of a cluster that must lie in the focus mask (published)
    connected: bool = False  # split clusters into connected components (ours; published: no)

    absence: float = 0.0  # peaks: share of the strongest noun's peak response below which a noun isn't there (ours)
    threshold: float = 0.5  # peaks: share of the clip's peak response that an instance's own peak must reach (ours)
    prominence: float = 0.2  # peaks: share of a peak by which the response must fall before the next one (ours)
    extent: float = 0.2  # peaks: share of the clip's peak response down to which the surroundings belong (ours)
    exclusive: bool = True  # a token belongs to one noun at most; False: each noun is read alone (released code)
    min_area: int = 1  # tokens, smaller pieces are specks and dropped; 1 keeps all on such a grid (published)
    tracks: bool = False  # link instances over frames, decide once per clip (ours; published: per frame)
    link_distance: float = 3.0  # tokens, the farthest an instance's centroid may move between two latent frames (ours)
    min_presence: float = 0.5  # share of the frames in which a track must be seen, else it is dropped (ours)

    def __post_init__(self) -> None:
        _share(self, "step", "block", "bandwidth_quantile", "focus", "min_focus", "threshold", "extent", "min_presence")
        _share(self, "prominence", "absence")
        _at_least(self, 0, "contrast_weight", "structure_weight", "edge_weight", "link_distance", "blocks")
        _at_least(self, 1, "structure_blocks", "dbscan_min_samples", "min_area", "stride")
        _above_zero(self, "dbscan_eps")
        _one_of_its_choices(self)
        if self.blocks != 1 and self.needs_self_attention:
            raise _out_of_range(self, "blocks", self.blocks, "must be 1 where source is clusters: one block clusters")

    def capture_step(self, times: Sequence[float]) -> int:
        """Index (from 0) of the denoising step whose attention is read: the one nearest to t* (`numina.schedule`)."""
        return min(range(len(times)), key=lambda step: abs(times[step] - self.step))

    def schedule(self, times: Sequence[float]) -> list[int]:
        """Steps that are run, of these: every ``stride``-th up to the captured one, and all from there on."""
        reference = self.capture_step(times)
        return [*range(0, reference, self.stride), *range(reference, len(times))]

    def capture_blocks(self, depth: int) -> list[int]:
        """Indices (from 0) of the transformer blocks whose attention is read, for a model of ``depth`` blocks."""
        first = min(depth - 1, int(self.block * depth + _SHARE_SLACK))
        if self.blocks == 1:
            return [first]
        number = self.blocks or depth - first
        return sorted({int(first + (depth - 1 - first) * i / max(1, number - 1) + 0.5) for i in range(number)})

    @property
    def needs_self_attention(self) -> bool:
        """Whether the capture must score self-attention heads, or cross-attention alone is enough."""
        return self.source == "clusters"


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How a layout is brought to the asked counts (arXiv 2604.08546 §3.3)."""

    disc_radius: float = 5.0  # r, tokens, radius of an added disc where there is no instance to copy (published)
    center_weight: float = 1.0  # λc, cost per squared token of distance from the noun's own centre (published)
    temporal_weight: float = 8.0  # λt, cost per squared token of movement between latent frames (published)
    max_move: float = 2.0  # tokens per axis an added track may move between latent frames (ours; per frame: any)
    margin: int = 1  # tokens kept free around an added instance, so that it stays countable (ours); 0: may touch
    placement: Literal["room", "released"] = "room"  # room: never on another instance; released: the authors' code

    def __post_init__(self) -> None:
        _at_least(self, 0, "disc_radius", "center_weight", "temporal_weight", "max_move", "margin")
        _one_of_its_choices(self)


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """How cross-attention is biased while the clip is generated again (arXiv 2604.08546 §3.4)."""

    remove: float = 10.0  # s, × δ off the scores of removed instances (published)
    add: float = 0.8  # k, × δ onto the scores of added instances (published)
    keep: float = 0.0  # κ, × δ onto the scores of kept instances (ours; published: none)
    elsewhere: float = 0.0  # β, × δ off the scores of every row without an instance of the noun (ours; published: none)
    other: float = 0.0  # o, × δ off the other nouns' scores where an instance is added (ours; published: none)
    overwrite: Literal["none", "head", "global"] = "head"  # copies take their reference's mean score (published: head)
    tokens: TokenSet = "noun"  # whose columns are biased: the noun's tokens (published) or its whole phrase's
    schedule: Literal["tanh", "constant"] = "tanh"  # δ over the steps (published: tanh)
    unit: Literal["score", "deviation"] = "score"  # of the strengths: scores, or standard deviations of scores (ours)
    strength: float = 1.75  # δ while on, for the constant schedule (ours: the tanh schedule's first value)
    until: float = 1.0  # share of the native schedule up to which steps are guided (published: all)
    anchor: int | None = (
        None  # tokens around edits beyond which a clip is held to the plain one up to t* (ours; null: not)
    )

    def __post_init__(self) -> None:
        _at_least(self, 0, "remove", "add", "keep", "elsewhere", "other", "strength")
        _share(self, "until")
        if self.anchor is not None:
            _at_least(self, 0, "anchor")
        _one_of_its_choices(self)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The whole method: the three stages, the name of the preset they came from, and the frame they are given for."""

    preset: str = "paper"  # a label for reports; the values below are what counts
    grid: int = 1560  # tokens of the frame that all lengths and areas are given for (30 × 52: 480p); 0: never scaled
    identify: IdentifyConfig = field(default_factory=IdentifyConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)

    def __post_init__(self) -> None:
        _at_least(self, 0, "grid")
        if self.guide.anchor is not None and self.identify.stride > 1:
            raise ConfigError(
                f"method.guide.anchor = {self.guide.anchor} holds clips to the plain one at every step, but"
                f" method.identify.stride = {self.identify.stride} leaves steps out: use stride 1, or anchor null"
            )

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


def _above_zero(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0.0 < value < float("inf"):
            raise _out_of_range(config, name, value, "must be finite and above 0")


def _one_of_its_choices(config: Any) -> None:
    for name, choices in choices_of(config.__class__).items():
        if (value := getattr(config, name)) not in choices:
            raise _out_of_range(config, name, value, f"must be one of {', '.join(choices)}")


def _out_of_range(config: object, name: str, value: object, rule: str) -> ConfigError:
    stage = "" if isinstance(config, MethodConfig) else f".{type(config).__name__.removesuffix('Config').lower()}"
    published = type(config).__dataclass_fields__[name].default  # type: ignore[attr-defined]
    return ConfigError(f"method{stage}.{name} = {value!r}, but it {rule}; the preset paper has {published!r}")
