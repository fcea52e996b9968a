"""What adapters share: a checkpoint folder's parts onto a device, prompts to texts, and seeded noise.

A family says in `Kinds` what its parts are and adds what is its own: sampler, forward, attention, decoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from numina.errors import ModelError
from pipelines.base import GenerationConfig, Grid, ModelFacts, Seams, Text, VaeDtype, prompt_offsets, rest_of
from pipelines.checkpoints.loading import Loader, agree
from pipelines.checkpoints.sharding import placement
from pipelines.models.families import FAMILIES, Family, check_parts, inspect
from pipelines.parallel.config import MemoryConfig


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """diffusers' and transformers' classes of a family's parts."""

    pipeline: Any
    transformer: Any
    vae: Any
    text_encoder: Any
    clean: Callable[[str], str]  # what the pipeline does to a prompt before it is tokenized
    left_out: tuple[str, ...] = ()  # parts that the pipeline could have, and this family doesn't


class PromptEncoder:
    """A checkpoint's tokenizer and text encoder: prompts to what the transformer attends to."""

    def __init__(self, kinds: Kinds, family: Family, pipeline: Any, dtype: torch.dtype, device: torch.device):
        self.kinds = kinds
        self.family = family
        self.pipeline = pipeline  # of which the tokenizer and the text encoder are used
        self.dtype = dtype  # of the encodings
        self.device = device
        self.loading: dict[str, float] = {}  # seconds and bytes: see `Loader`

    @classmethod
    def load(cls, kinds: Kinds, path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Self:
        """Loads these two parts of a checkpoint folder alone. Raises ModelError where one is missing or doesn't fit."""
        folder, place = Path(path), torch.device(device)
        family = FAMILIES[agree(lambda: check_parts(folder, ("tokenizer", "text_encoder")), place)]
        quiet_loading()
        dtype = dtype or default_dtype_of(place)
        loader = Loader(place)
        encoder = loader.load(kinds.text_encoder, folder / "text_encoder", dtype)
        parts = assemble(kinds, folder, text_encoder=encoder, transformer=None, vae=None, scheduler=None)
        loaded = cls(kinds, family, parts, dtype, place)
        loaded.loading = loader.spent
        return loaded

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]:
        """One text per prompt, each with its own negative prompt's where the generation is guided."""
        length = text_tokens(self.family, self.pipeline.tokenizer)
        guided = generation.guidance_scale > 1
        with torch.inference_mode():
            conditional, unconditional = self.pipeline.encode_prompt(
                list(prompts),
                list(negative_prompts),
                do_classifier_free_guidance=guided,
                max_sequence_length=length,
                device=self.device,
                dtype=self.dtype,
            )
        cleaned, offsets, cuts = self._tokenized(prompts, length)
        negative_cuts = self._tokenized(negative_prompts, length)[2] if guided else [""] * len(prompts)
        return [
            Text(
                prompt,
                conditional[i : i + 1],
                unconditional[i : i + 1] if guided else None,
                offsets[i],
                cuts[i],
                negative_cuts[i],
            )
            for i, prompt in enumerate(cleaned)
        ]

    def _tokenized(
        self, prompts: Sequence[str], length: int
    ) -> tuple[list[str], list[tuple[tuple[int, int], ...]], list[str]]:
        """The prompts as they are tokenized, their tokens' offsets, and the end of each that is cut."""
        cleaned = [self.kinds.clean(prompt) for prompt in prompts]
        tokens = self.pipeline.tokenizer(
            cleaned, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True
        )
        offsets = [prompt_offsets(own) for own in tokens["offset_mapping"]]
        full = [all(mask) for mask in tokens["attention_mask"]]
        cuts = [rest_of(text, own) if cut else "" for text, own, cut in zip(cleaned, offsets, full, strict=True)]
        return cleaned, offsets, cuts


class Adapter:
    """The part of a `VideoModel` that all families have."""

    kinds: ClassVar[Kinds]

    def __init__(self, pipeline: Any, facts: ModelFacts, device: torch.device):
        self.facts = facts
        self.device = device
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self.text_tokens = text_tokens(self.family, getattr(pipeline, "tokenizer", None))
        self.loading: dict[str, float] = {}  # seconds and bytes: see `Loader`

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        memory: MemoryConfig | None = None,
        text_encoder: bool = True,
        vae_dtype: VaeDtype = "auto",
    ) -> Self:
        """Loads a checkpoint folder. `dtype` is the transformer's and text encoder's; the VAE has `vae_dtype`, or the
        family's own, or `dtype`.

        All ranks of a gang call at the same time, with the same arguments; the first reads for all. The VAE is whole on
        every rank, whatever is sharded. Raises ModelError when a part is missing, of another family, or its weights
        don't fit its config, and ConfigError where sharding can't be had.
        """
        place = torch.device(device)
        facts = agree(lambda: inspect(path), place)
        quiet_loading()
        dtype = dtype or default_dtype_of(place)
        sharded = placement((memory or MemoryConfig()).shard, place)
        loader, folder, kinds = Loader(place), Path(path), cls.kinds  # its own: the first rank's may be elsewhere
        parts = {
            "transformer": loader.load(kinds.transformer, folder / "transformer", dtype, sharded),
            "vae": loader.load(kinds.vae, folder / "vae", FAMILIES[facts.family].vae_precision(dtype, vae_dtype)),
        }
        encoder = loader.load(kinds.text_encoder, folder / "text_encoder", dtype, sharded) if text_encoder else None
        model = cls(assemble(kinds, folder, text_encoder=encoder, **parts), facts, place)
        model.loading = loader.spent
        return model

    @classmethod
    def load_text_encoder(cls, path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Any:
        """Loads its tokenizer and text encoder alone."""
        return PromptEncoder.load(cls.kinds, path, dtype=dtype, device=device)

    @property
    def family(self) -> Family:
        return FAMILIES[self.facts.family]

    @property
    def seams(self) -> Seams:
        raise AssertionError(f"{self.family.title} has no seams, and its `Family.lacks.split` doesn't say so")

    @property
    def vae(self) -> Any:
        return getattr(self.pipeline, "vae", None)

    @property
    def vae_dtype(self) -> str:
        return str(self.vae.dtype).removeprefix("torch.")

    @property
    def depth(self) -> int:
        return self.facts.depth

    def clean(self, prompt: str) -> str:
        return self.kinds.clean(prompt)

    def grid(self, generation: GenerationConfig) -> Grid:
        return self.facts.grid(generation)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]:
        if self.pipeline.text_encoder is None:
            raise ModelError(
                f"{self.facts.path} was loaded without its text encoder; encode with `load_text_encoder`, as"
                " memory.text_encoder=apart does, or load the model with text_encoder=True"
            )
        encoder = PromptEncoder(self.kinds, self.family, self.pipeline, self.transformer.dtype, self.device)
        return encoder.encode(prompts, negative_prompts, generation)

    def seeded(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise of a clip's shape for each seed, [B, …], float32, drawn on the CPU."""
        clips = [torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(clips).to(self.device)


def assemble(kinds: Kinds, folder: Path, **parts: Any) -> Any:
    """A pipeline of parts that are loaded, or left out by None; the others of the folder, which are small, are read.

    Raises ModelError where the tokenizer can't tell offsets.
    """
    parts |= dict.fromkeys(kinds.left_out)
    pipeline = kinds.pipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, **parts)
    if not pipeline.tokenizer.is_fast:
        raise ModelError(
            f"{folder}/tokenizer is not a fast tokenizer; token offsets need its tokenizer.json or spiece.model"
        )
    return pipeline


def text_tokens(family: Family, tokenizer: Any | None) -> int:
    """How many tokens every prompt is padded to."""
    return min(tokenizer.model_max_length, family.text_tokens) if tokenizer else family.text_tokens


def default_dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quiet_loading() -> None:
    """Keeps the libraries' loading bars out of logs; errors still show."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
