"""A text encoder of its own: what a gang's GPUs needn't hold, and what is done before a gang asks for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray
import torch
from torch import Tensor

from cluster.workers.member import AloneSpec, Arrival, Member, ModelSpec, text_on
from pipelines.base import Text
from pipelines.models.registry import ENCODER_PARTS, model_folder
from pipelines.sampling.clip import Request

if TYPE_CHECKING:
    from pipelines.base import TextEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(AloneSpec, ModelSpec):
    """What an encoder's process is made of."""

    @property
    def actor(self) -> type[Member]:
        return Encoder


class Encoder(Member):
    """Tokenizer and text encoder alone."""

    spec: EncoderSpec
    encoder: TextEncoder | None = None
    unconditional: Tensor | None = None  # of the job's negative prompt, which most clips share

    def download(self) -> None:
        model_folder(self.spec.model_path, self.spec.model_revision, ENCODER_PARTS)

    def load(self, first: Arrival) -> dict[str, float]:
        from pipelines.models.registry import load_text_encoder

        began = time.perf_counter()
        device = "cuda" if self.spec.gpus else "cpu"
        if device == "cpu":
            torch.set_num_threads(self.spec.cpus)
        self.encoder = load_text_encoder(
            self.spec.model_path, dtype=self.spec.dtype, device=device, revision=self.spec.model_revision
        )
        return {"load": time.perf_counter() - began}

    @ray.method(num_returns=2)
    def encode(self, requests: Sequence[Request]) -> tuple[list[Text], float]:
        """The requests' texts, on the CPU; and the seconds that each took."""
        began = time.perf_counter()
        texts = self._encode(requests)
        return texts, (time.perf_counter() - began) / len(requests)

    def _encode(self, requests: Sequence[Request]) -> list[Text]:
        from pipelines.sampling.generate import encode

        assert self.encoder is not None, "load() comes first"
        generation = self.spec.generation
        alike = generation.guidance_scale > 1 and all(request.negative_prompt is None for request in requests)
        if alike and self.unconditional is not None:
            generation = replace(generation, guidance_scale=1.0)  # encodes no negative prompts
        texts = [text_on(torch.device("cpu"), text) for text in encode(self.encoder, requests, generation)]
        if not alike:
            return texts
        if self.unconditional is None:
            self.unconditional = texts[0].unconditional
        return [replace(text, unconditional=self.unconditional) for text in texts]
