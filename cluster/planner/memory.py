"""What a rank's GPU must hold, from a checkpoint's configs and the sizes of its weights.

Names: d width of the model, f of its feed-forward layers, n tokens of a clip, R ranks.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, log, prod

from cluster.job.checked import CheckedJob
from cluster.planner.measured import EncodeRow, Gpu, default_gpu
from cluster.planner.setup import Setup
from pipelines.base import ModelFacts
from pipelines.checkpoints.files import reading_configs
from pipelines.models.families import FAMILIES
from pipelines.models.published import Part, contents_of

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 2}  # float8: read as bfloat16, then made less

CONTEXT_GIB = 0.6  # of CUDA and its libraries, in every process
SLACK = 1.05  # fragmentation: nothing is planned to the last byte
# Kernels' workspace and the allocator's rounding on top: 14B at 480p peaks at 33 GiB, of which 26.6 are weights.
WORKSPACE = 1.8
# What a decoder holds in half precision, of what it does in float32: Wan's layers keep more for the next frames there
# (6.7 of 7.6 GiB measured for Wan2.1's, 11.8 of 14.7 counted for Wan2.2's: tests/benchmarks/decode_held.py).
HALVED = 0.9
STEP_STATES = 3  # times the latents that one more kept step takes: they, the sampler's prediction and its last sample


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the planner needs of a checkpoint beside ModelFacts."""

    transformer: Part
    text_encoder: Part
    vae: Part
    width: int  # d
    ffn: int  # f
    latent_numbers: int  # per token: channels × patch
    text_width: int
    text_depth: int
    text_tokens: int  # of every prompt
    decoder_width: int  # channels of the VAE's last layers


def read_sizes(model: ModelFacts) -> Sizes:
    """From a checkpoint's configs and the headers of its weight files, or as published; no weight is read."""
    contents = contents_of(model)
    transformer, text, vae = (contents.configs[part] for part in ("transformer", "text_encoder", "vae"))
    width, family = model.heads * model.head_size, FAMILIES[model.family]
    with reading_configs(f"a config.json of {model.path}"):
        return Sizes(
            transformer=contents.parts["transformer"],
            text_encoder=contents.parts["text_encoder"],
            vae=contents.parts["vae"],
            width=width,
            ffn=transformer.get("ffn_dim") or 4 * width,
            latent_numbers=transformer["in_channels"] * prod(family.patch(transformer)),
            text_width=int(text["d_model"]),
            text_depth=int(text["num_layers"]),
            text_tokens=family.text_tokens,
            decoder_width=family.decoder_width(vae),
        )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """GiB on one rank. Weights and states are there all the time, the last three while their phase runs."""

    transformer: float
    text_encoder: float
    vae: float
    states: float  # kept latents: of clips that wait for their layout, and what anchored guidance is held to
    encoding: float
    denoising: float
    decoding: float

    @property
    def phase(self) -> str:
        """Which phase holds the most; caches are freed between them."""
        phases = {"encoding": self.encoding, "denoising": self.denoising, "decoding": self.decoding}
        return max(phases, key=phases.__getitem__)

    @property
    def peak(self) -> float:
        """The most that a GPU must hold, with CUDA's own and the slack."""
        held = self.transformer + self.text_encoder + self.vae + self.states
        return (held + max(self.encoding, self.denoising, self.decoding) + CONTEXT_GIB) * SLACK


class MemoryModel:
    """Memory of one job's ranks."""

    def __init__(self, prepared: CheckedJob, sizes: Sizes, gpu: Gpu):
        self.job, self.sizes = prepared.job, sizes
        self.decode = gpu.decode.rows or default_gpu().decode.rows
        self.encode = gpu.encode.rows or default_gpu().encode.rows
        self.generation = prepared.job.generation
        self.bytes = BYTES[prepared.dtype]  # of a number of the transformer and the text encoder, however stored
        self.family = FAMILIES[prepared.model.family]
        self.decoder_bytes = BYTES[prepared.vae_dtype]
        self.tokens = prepared.model.grid(prepared.job.generation).tokens
        self.joint = prepared.model.joint
        self.model = prepared.model

    def of(self, setup: Setup) -> Memory:
        """What every rank holds, in GiB; the first one collects pixels too, but as bytes and on the CPU."""
        transformer, gathered = self._held(self.weights, self.sizes.transformer, setup)
        text_encoder = text_gathered = 0.0
        if setup.text_encoder == "gang":
            text_encoder, text_gathered = self._held(self.encoder_weights, self.sizes.text_encoder, setup)
        return Memory(
            transformer=transformer,
            text_encoder=text_encoder,
            vae=self.sizes.vae.parameters * self.decoder_bytes / GIB,  # it is never sharded
            states=self._states * setup.batch,
            encoding=text_gathered,
            denoising=gathered + self._activations(setup.sequence_ranks) * setup.batch,
            decoding=self._decoding(setup.ranks) * setup.batch if self.family.decoder_splits else self._decoding(1),
        )

    @property
    def weights(self) -> float:
        """GiB of the whole transformer."""
        return self.sizes.transformer.parameters * self.bytes / GIB

    @cached_property
    def encoder_weights(self) -> float:
        """GiB of the whole text encoder; no less than was seen: some transformers versions hold embeddings twice."""
        seen = [row.gib * self.bytes / BYTES["bfloat16"] for row in self.encode if encodes(row, self.sizes)]
        return max([self.sizes.text_encoder.parameters * self.bytes / GIB, *seen])

    def _held(self, whole: float, part: Part, setup: Setup) -> tuple[float, float]:
        """GiB of a part that are always there, and those gathered while it runs."""
        if setup.shard == "none":
            return whole, 0.0
        return (whole / setup.ranks if setup.shard == "zero3" else 0.0), part.largest * self.bytes / GIB

    def _activations(self, sequence_ranks: int) -> float:
        """Of one clip's forward of one branch; the other one comes after it, or is on other ranks."""
        rows = ceil((self.tokens + (self.sizes.text_tokens if self.joint else 0)) / sequence_ranks)
        numbers = self.family.block_numbers(self.sizes.width, self.sizes.ffn)
        return rows * numbers * self.bytes * WORKSPACE / GIB

    @cached_property
    def _states(self) -> float:
        """Latents of the clips in flight, one in each batch; anchored, those of every step of identification."""
        latents = self.tokens * self.sizes.latent_numbers * BYTES["float32"]
        kept = [
            method.identify.capture_step(self.model.times(self.generation, method.schedule_by)) + 1
            for method in self.job.methods.values()
            if method and method.guide.anchor is not None
        ]
        return latents * (STEP_STATES * max(kept, default=0) + 1) * self.job.cluster.clips_in_flight / GIB

    def _decoding(self, ranks: int) -> float:
        """Of one clip: by a frame's pixels, for frames are decoded in turn and split over ranks.

        From the nearest row; where none is of this VAE, by what the two decoders hold.
        """
        pixels = self.generation.height * self.generation.width
        row = min(
            self.decode,
            key=lambda row: (
                row.decoder_width != self.sizes.decoder_width,
                BYTES[row.dtype] != self.decoder_bytes,
                abs(log(pixels / (row.height * row.width))),
                abs(log(ranks / row.ranks)),
            ),
        )
        numbers = max(HALVED, self.decoder_bytes / BYTES[row.dtype])
        scale = pixels / (row.height * row.width) * row.ranks / ranks * numbers
        return row.gib * scale * _decoded(self.sizes.decoder_width) / _decoded(row.decoder_width)


def _decoded(width: int) -> int:
    """Numbers per pixel that a decoder holds at once; one of no known width is taken for that which holds the most."""
    known = {own: numbers for family in FAMILIES.values() for own, numbers in family.decoder_numbers.items()}
    return width * known.get(width, max(known.values()))


def encodes(row: EncodeRow, sizes: Sizes) -> bool:
    """Whether a row is of the checkpoint's text encoder."""
    return (row.width, row.depth, row.tokens) == (sizes.text_width, sizes.text_depth, sizes.text_tokens)
