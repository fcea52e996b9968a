"""What every video model offers the method: the one protocol behind which families differ.

Names: B clips of a batch, F latent frames, H W token grid of a frame, N heads, D head size, T text tokens, C latent
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from numina.choices import check_choices
from numina.config import ScheduleBy
from numina.errors import ConfigError
from numina.schedule import noise_levels, schedule_times, times_of
from pipelines.parallel.support import check_cache

if TYPE_CHECKING:  # settings and facts are read where torch, seconds to import, isn't needed
    import torch
    from torch import Tensor

    from numina.bias import ShardGuidance
    from pipelines.parallel.shard import Shard

VaeDtype = Literal["auto", "float32", "bfloat16"]
Attention = Any  # diffusers' attention module
Processor = Callable[..., Any]  # what computes it
Project = Callable[..., "tuple[Tensor, Tensor, Tensor]"]  # an attention and hidden states → queries, keys, values
See = Callable[["Tensor", "Tensor"], None]  # is shown queries [B, n, N, D] and keys [B, n or T, N, D], rotated

MOST_PIXELS = 8192  # of a side
MOST_FRAMES = 10_001
MOST_FPS = 240
MOST_STEPS = 1000
LARGE_PIXELS = 640_000  # of a frame: between 480 × 832 and 720 × 1280


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The clip's size, and how it is sampled. All of it enters a row's key."""

    height: int = 480  # [pixels] of the video; a multiple of the model's stride, 16 or 32
    width: int = 832  # [pixels] of the video; a multiple of the model's stride, 16 or 32
    num_frames: int = 81  # [frames] of the video: 4k + 1 (CogVideoX 8k + 1), as the VAE requires
    fps: int = 16  # [frames/s] of the mp4; Wan2.1's own rate
    steps: int = 50  # [steps] of denoising; Wan2.1's default
    guidance_scale: float = 5.0  # weight of classifier-free guidance; 1: no unconditional pass
    # shift of the noise schedule; null: the model's own at this size (Wan2.1: 3 at 480p, 5 at 720p)
    flow_shift: float | None = None
    # what denoises: native (the model's own: UniPC or DDIM), euler (straight steps along the flow), or renoise (to the
    # clean clip, then back to the next noise level with fresh noise, as models distilled to a few steps are trained)
    sampler: Literal["native", "euler", "renoise"] = "native"
    # [noise level] of each step, falling, above 0 and at most 1, shift included; empty: made of steps and flow shift
    sigmas: list[float] = field(default_factory=list)
    negative_prompt: str = ""  # used for rows that have none
    # step cache of plain, continued and guided denoising (pipelines/README.md): none, taylorseer, magcache,
    # first_block or cfg_cache
    cache: str = "none"
    # what the VAE decodes in: auto (the model family's own: float32 for Wan, model.dtype for CogVideoX), float32, or
    # bfloat16 (for Wan half the time and less memory; pixels differ slightly)
    vae_dtype: VaeDtype = "auto"
    crf: int = 18  # x264's quality of the mp4, from 0 (lossless) to 51 (worst)

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= MOST_FRAMES or self.num_frames % 4 != 1:
            near = min(MOST_FRAMES, max(1, round((self.num_frames - 1) / 4) * 4 + 1))
            raise ConfigError(f"generation.num_frames is {self.num_frames}; it must be 4k + 1: use {near}")
        for name in ("height", "width"):
            if not 16 <= getattr(self, name) <= MOST_PIXELS or getattr(self, name) % 16:
                raise ConfigError(
                    f"generation.{name} is {getattr(self, name)}; it must be a positive multiple of 16,"
                    f" {MOST_PIXELS:,} at most"
                )
        if self.steps < 1:
            raise ConfigError(f"generation.steps is {self.steps}; at least one step is needed")
        if self.steps > MOST_STEPS:
            raise ConfigError(f"generation.steps is {self.steps}; use {MOST_STEPS:,} at most: models know no more")
        if not 1 <= self.fps <= MOST_FPS:
            raise ConfigError(f"generation.fps is {self.fps}; it must be 1 to {MOST_FPS}")
        if self.guidance_scale < 0:
            raise ConfigError(
                f"generation.guidance_scale is {self.guidance_scale:g}; it must be 0 or more (up to 1: no guidance)"
            )
        if self.flow_shift is not None and self.flow_shift <= 0:
            raise ConfigError(f"generation.flow_shift is {self.flow_shift:g}; it must be above 0, or null")
        check_choices("generation", self)
        self._check_sigmas()
        check_cache("generation.cache", self.cache)
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"generation.crf is {self.crf}; x264 takes 0 (lossless) to 51 (worst)")

    def _check_sigmas(self) -> None:
        if not self.sigmas:
            return
        given = f"generation.sigmas is [{', '.join(f'{sigma:g}' for sigma in self.sigmas)}]"
        if any(not 0 < sigma <= 1 for sigma in self.sigmas):
            raise ConfigError(
                f"{given}; each must be above 0 and at most 1: give noise levels, which are timesteps / 1000, without"
                " the 0 after the last step"
            )
        if any(after >= before for before, after in pairwise(self.sigmas)):
            raise ConfigError(f"{given}; they must fall from step to step: sort them, and give each once")
        if len(self.sigmas) != self.steps:
            raise ConfigError(
                f"{given}, {len(self.sigmas)} noise levels, but generation.steps is {self.steps}; give one for each"
                f" step: set steps to {len(self.sigmas)}"
            )
        if self.flow_shift is not None:
            raise ConfigError(
                f"generation.flow_shift is {self.flow_shift:g}, but generation.sigmas gives the noise levels as they"
                " are, shift included; leave flow_shift null, or sigmas empty"
            )

    def named(self) -> dict[str, Any]:
        """The settings for names of outputs, all of which decide what comes out.

        Settings that came after the first outputs are left out where they change nothing: names stay.
        """
        named = asdict(self)
        if self.sampler == "native":
            del named["sampler"]
        if not self.sigmas:
            del named["sigmas"]
        if self.vae_dtype == "auto":
            del named["vae_dtype"]
        return named

    def first(self, steps: int) -> GenerationConfig:
        """The same clip with so many steps at most, uncached: for a trial."""
        return replace(self, steps=min(self.steps, steps), sigmas=self.sigmas[:steps], cache="none")


@dataclass(frozen=True)
class Grid:
    """A clip's tokens: F latent frames of H × W tokens, numbered frame by frame, row by row."""

    frames: int
    height: int
    width: int

    @property
    def frame_tokens(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.frames * self.frame_tokens


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a checkpoint's own configs say, read without loading a weight."""

    path: str
    name: str
    revision: str  # content-derived
    family: str  # of `models.families.FAMILIES`
    depth: int  # transformer blocks
    heads: int
    head_size: int
    joint: bool = False  # text and video are one sequence of attention; else text has cross-attention of its own
    token_strides: tuple[int, int, int]  # frames, pixels down, pixels across per token
    frame_step: int = 4  # s: the VAE decodes to s·k + 1 frames, and to no other number
    sampler: str  # diffusers' class that denoises
    shift: float | None  # of the checkpoint's own flow schedule; None: its sampler is no flow's
    large_shift: float | None = None  # the least flow shift of its clips beyond 480p

    def grid(self, generation: GenerationConfig) -> Grid:
        """The token grid of a clip.

        Raises ConfigError where a side is no multiple of the model's stride, or its VAE makes other numbers of frames.
        """
        time, *space = self.token_strides
        frames, step = generation.num_frames, self.frame_step
        if (frames - 1) % step:
            near = round((frames - 1) / step) * step + 1
            raise ConfigError(f"generation.num_frames is {frames}; {self.name} makes {step}k + 1: use {near}")
        for name, stride in zip(("height", "width"), space, strict=True):
            value = getattr(generation, name)
            if value % stride:
                near = max(stride, round(value / stride) * stride)
                raise ConfigError(f"generation.{name} is {value}; {self.name} needs a multiple of {stride}: use {near}")
        height, width = generation.height // space[0], generation.width // space[1]
        return Grid((generation.num_frames - 1) // time + 1, height, width)

    def native_shift(self, generation: GenerationConfig) -> float | None:
        """The flow shift that clips of this size are sampled with unless told otherwise; None where there is no flow.

        The checkpoint's own, and at least the family's `large_shift` beyond 480p.
        """
        if self.shift is None or self.large_shift is None or generation.height * generation.width <= LARGE_PIXELS:
            return self.shift
        return max(self.shift, self.large_shift)

    def flow_shift(self, generation: GenerationConfig) -> float | None:
        """The flow shift that a clip is sampled with.

        Raises ConfigError where one, or what else only a flow has, is asked of a sampler without.
        """
        if self.shift is None:
            asked, wrong = f"but {self.name} is sampled by {self.sampler}", None
            if generation.flow_shift is not None:
                wrong = f"flow_shift is {generation.flow_shift:g}, {asked}, which has none; leave it null"
            elif generation.sampler != "native":
                wrong = f"sampler is {generation.sampler}, {asked} and is no flow model; use native"
            elif generation.sigmas:
                wrong = f"sigmas is {generation.sigmas}, {asked}, whose noise levels are fixed; leave it empty"
            if wrong:
                raise ConfigError(f"generation.{wrong}")
        return self.native_shift(generation) if generation.flow_shift is None else generation.flow_shift

    def check_stride(self, stride: int) -> None:
        """Raises ConfigError where identification is to leave steps out, and the sampler can't: a flow's can."""
        if stride > 1 and self.shift is None:
            raise ConfigError(
                f"method.identify.stride is {stride} and skips steps, which {self.sampler} of {self.name} doesn't"
                " support; use stride 1"
            )

    def times(self, generation: GenerationConfig, by: ScheduleBy = "noise") -> tuple[float, ...]:
        """When each step comes: a share of the model's native schedule, or of the steps (`numina.schedule`)."""
        shift = self.flow_shift(generation)
        native = shift if by == "index" else self.native_shift(generation)
        if generation.sigmas and by == "noise":
            assert native is not None, "`flow_shift` refuses noise levels where there is no flow"
            return times_of(generation.sigmas, native)
        return schedule_times(generation.steps, shift, native)

    def sigmas(self, generation: GenerationConfig) -> tuple[float, ...]:
        """The noise level of each step: those that are given, or of the steps under the flow shift."""
        shift = self.flow_shift(generation)
        assert shift is not None, "`flow_shift` refuses samplers that need noise levels where there is no flow"
        return tuple(generation.sigmas) or noise_levels(generation.steps, shift)


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Where a transformer lets its tokens be spread over ranks, and whose self-attention then sees the others' rows."""

    patches: Any  # module that gives the embedded patches [B, C, F, h, w]
    tables: Any  # module that gives the rotary tables [1, n, 1, D]
    rows: Any  # module that gives the predicted rows [B, n, ·]
    attentions: Sequence[Attention]  # self-attention of each block
    project: Project  # its queries, keys and values, normalised and rotated


@dataclass(frozen=True)
class Text:
    """A prompt as the transformer takes it, and where its tokens stand in the prompt.

    `conditional` and `unconditional` are [1, T, text_dim]; `offsets` has one (start, end) per token, in characters of
    `prompt`, which is the prompt after the pipeline's own cleaning. Special and padding tokens have (0, 0).
    """

    prompt: str
    conditional: Tensor
    unconditional: Tensor | None
    offsets: tuple[tuple[int, int], ...]
    cut: str = ""  # the end of the prompt, where it is too long for the encoder
    negative_cut: str = ""  # of the negative prompt


class Scheduler(Protocol):
    """The part of a diffusers scheduler that denoising uses; it carries its own multistep history."""

    timesteps: Tensor

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool, **noise: Any
    ) -> tuple[Tensor, ...]:
        """`noise`: `generator`, one for each clip, where the sampler renoises."""


class Decoded(NamedTuple):
    """What a decoder made of a batch of latents, on the CPU."""

    pixels: Tensor  # uint8 [B, frames, H, W, 3]
    finite: Tensor  # bool [B], whether a clip's pixels were all numbers before they became bytes


class TextEncoder(Protocol):
    """What makes of prompts what the transformer takes."""

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]: ...


class VideoModel(TextEncoder, Protocol):
    """A text-to-video diffusion transformer with its text encoder, sampler and VAE."""

    facts: ModelFacts
    device: torch.device
    transformer: Any  # diffusers' transformer
    text_tokens: int  # T, of every encoded prompt
    text_width: int  # of a token's encoding
    vae_dtype: str  # that its VAE was loaded in, and decodes in
    loading: dict[str, float]  # what it took: seconds to read and to send, and the bytes

    @property
    def depth(self) -> int: ...

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer's repeated blocks."""

    @property
    def seams(self) -> Seams:
        """Asked for only where the family's tokens can be split."""

    def clean(self, prompt: str) -> str:
        """What is done to a prompt before it is tokenized."""

    def grid(self, generation: GenerationConfig) -> Grid: ...

    def noise(self, seeds: Sequence[int], generation: GenerationConfig) -> Tensor:
        """Seeded noise [B, C, F, h, w], float32, each clip's drawn on the CPU from its own seed: any number of ranks,
        and any batch, starts from the same."""

    def scheduler(self, generation: GenerationConfig, kept: Sequence[int] | None = None) -> Scheduler:
        """The sampler at its start; with only the `kept` steps of its schedule (ascending indices) where given, which
        `facts.check_stride` allows."""

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """One forward of the transformer: [B, C, F, h, w], one timestep, [B, T, text_width] → the sampler's input."""

    def onlookers(self, block: int, see_cross: See, see_self: See | None) -> Mapping[Attention, Processor]:
        """Attention processors with which a block's forward computes what it did, and shows its queries with the text's
        keys and, where asked, with the clip's own."""

    def guided(self, guidance: ShardGuidance, shard: Shard) -> Mapping[Attention, Processor]:
        """Attention processors with which all blocks' forwards are guided, on this rank's rows."""

    def split_decoder(self, group: Any) -> None:
        """From here on the ranks of a process group decode together, where this VAE can be split. All call."""

    def decode(self, latents: Tensor) -> Decoded | None:
        """[B, C, F, h, w] → uint8 pixels [B, num_frames, height, width, 3] on the CPU, and whether they were numbers.

        All ranks of a gang have a part in it, and the first one has the result; the others get None.
        """


def rest_of(prompt: str, offsets: Sequence[tuple[int, int]]) -> str:
    """What stands behind the last character that has a token."""
    return prompt[max((end for _, end in offsets), default=0) :].strip()


def prompt_offsets(offsets: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """A tokenizer's offsets as plain tuples."""
    return tuple((int(start), int(end)) for start, end in offsets)
