"""CLIP through transformers: how well frames fit their prompt, and neighbouring frames each other (method.md §7).

Legend: b frames of a pass, D width of an embedding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from numina.metrics import clip_score, temporal_consistency
from pipelines.judges.base import Case, Judgement
from pipelines.judges.images import PIL_FILTERS, centre_crop, clip_size, resize
from pipelines.judges.passes import FrameOf, Frames, run_passes
from pipelines.judges.weighted import WeightedJudge

Embedding = Float[np.ndarray, " D"]


def mean_embedding(frames: Float[np.ndarray, "frames D"]) -> Embedding:
    """The mean of frames' directions, of length 1: what a whole clip shows."""
    mean = (frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


class ClipJudge(WeightedJudge):
    """Scores a video by CLIP (arXiv 2103.00020), and counts nothing. Of a prompt it reads the first 77 tokens."""

    model_class = "CLIPModel"

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """A judgement per case, in order: no counts, and no scores for a clip without frames."""
        texts = [self.embed_text(case.prompt) for case in cases]
        frames: list[list[Embedding]] = [[] for _ in cases]

        def forward(pixels: Frames, batch: list[FrameOf]) -> Sequence[Tensor]:
            return [self.embed_frames(pixels)]

        for batch, [embeddings] in run_passes(cases, self.config, self.device, forward):
            for place, embedding in zip(batch, embeddings, strict=True):
                frames[place.case].append(embedding)
        return [
            Judgement(
                detected=None,
                clip_score=clip_score(np.stack(embedded), text) if embedded else None,
                temporal_consistency=temporal_consistency(np.stack(embedded)) if embedded else None,
                embedding=mean_embedding(np.stack(embedded)) if embedded else None,
            )
            for text, embedded in zip(texts, frames, strict=True)
        ]

    def embed_text(self, prompt: str) -> Embedding:
        """In float32. A prompt of more than the model's 77 tokens is cut there, as CLIP was trained."""
        limit = self.model.config.text_config.max_position_embeddings
        read = self.processor.tokenizer(prompt, truncation=True, max_length=limit, return_tensors="pt")
        with torch.inference_mode():
            embedded = self.model.get_text_features(**read.to(self.device)).pooler_output
        return np.asarray(embedded[0].float().cpu())

    def embed_frames(self, frames: Frames) -> Float[Tensor, "b D"]:
        """In float32."""
        embedded: Tensor = self.model.get_image_features(pixel_values=self.prepare(frames)).pooler_output
        return embedded.float()

    def prepare(self, frames: Frames) -> Float[Tensor, "b 3 h w"]:
        rule = self.processor.image_processor
        resized = resize(
            frames, clip_size(frames.shape[-2:], rule.size["shortest_edge"]), PIL_FILTERS[int(rule.resample)]
        )
        return self.normalise(centre_crop(resized, rule.crop_size["height"], rule.crop_size["width"]), self.dtype)
