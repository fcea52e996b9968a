"""GroundingDINO through transformers: one caption of all nouns, and a score of every box with every token of it.

Legend: b frames of a pass, q boxes proposed per frame (900), t tokens of a caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from numina.errors import InputError
from pipelines.judges.base import JudgeConfig
from pipelines.judges.detector import Detector, Proposals
from pipelines.judges.dino_layers import fast_layers
from pipelines.judges.images import PIL_FILTERS, detector_size, resize
from pipelines.judges.passes import Frames

PAD_TO = 16  # tokens: captions of a few nouns have one shape, whatever their words


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A case's nouns as one text, "cats . dogs .", and which of its tokens are which noun's."""

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]  # first token and the one after the last, of each noun


class CaptionMemory(nn.Module):
    """The model's text backbone, run once for every caption and not for every frame.

    The model calls it with masks that it makes of the tokens; so it stands in the backbone's place, and is told which
    captions the rows of the coming call are. What padding becomes is masked in all that follows.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.rows: list[tuple[int, ...]] = []  # captions of the coming call
        self.known: dict[tuple[int, ...], Tensor] = {}  # [t, width] of the call before

    def forward(self, input_ids: Tensor, *more: Tensor, **options: Any) -> Any:
        new = {caption: row for row, caption in enumerate(self.rows) if caption not in self.known}
        if new:
            rows = list(new.values())
            states = self.backbone(input_ids[rows], *(tensor[rows] for tensor in more), **options).last_hidden_state
            self.known |= {caption: state[: len(caption)] for caption, state in zip(new, states, strict=True)}
        self.known = {caption: self.known[caption] for caption in self.rows}  # a clip's frames come one after the other
        padding = [input_ids.shape[1] - len(caption) for caption in self.rows]
        states = [
            nn.functional.pad(self.known[caption], (0, 0, 0, short))
            for caption, short in zip(self.rows, padding, strict=True)
        ]
        return _TextStates(torch.stack(states))


@dataclass(frozen=True)
class _TextStates:
    last_hidden_state: Float[Tensor, "b t width"]


class GroundingDino(Detector[Caption]):
    """Counts boxes that GroundingDINO finds (arXiv 2303.05499); its thresholds are those of method.md §7."""

    model_class = "GroundingDinoForObjectDetection"

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self.texts = self.model.model.text_backbone = CaptionMemory(self.model.model.text_backbone)
        fast_layers(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"text_threshold": self.config.text_threshold}

    @property
    def least_noun_score(self) -> float:
        return self.config.text_threshold

    def read(self, nouns: Sequence[str]) -> Caption:
        # A dot or question mark ends a phrase for the model: one inside a noun would tear it apart.
        words = [" ".join(noun.lower().translate({ord("."): " ", ord("?"): " "}).split()) for noun in nouns]
        caption = "".join(f"{word} . " for word in words).strip()
        read = self.tokenizer(caption, return_offsets_mapping=True)
        tokens, spans, start = read["input_ids"], [], 0
        for noun, word in zip(nouns, words, strict=True):
            end = start + len(word)
            mine = [i for i, (low, high) in enumerate(read["offset_mapping"]) if start <= low < high <= end]
            self.check_noun(noun, [tokens[i] for i in mine])
            spans.append((mine[0], mine[-1] + 1))
            start = end + len(" . ")
        if len(tokens) > (limit := self.model.config.max_text_len):
            raise InputError(
                f"{', '.join(nouns)} are {len(tokens)} tokens, but GroundingDINO reads {limit}; ask for fewer targets"
            )
        return Caption(tokens=tuple(tokens), spans=tuple(spans))

    def propose(self, frames: Frames, texts: Sequence[Caption]) -> Proposals:
        height, width = frames.shape[-2:]
        logits, boxes = self.forward(frames, texts)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=-1) * boxes.new_tensor([width, height] * 2)
        best, nouns = _by_noun(logits, texts).max(dim=-1)
        return Proposals(boxes=corners, scores=logits.amax(dim=-1).sigmoid(), noun_scores=best.sigmoid(), nouns=nouns)

    def forward(
        self, frames: Frames, texts: Sequence[Caption]
    ) -> tuple[Float[Tensor, "b q t"], Float[Tensor, "b q 4"]]:
        """Logits with every token, float32, and boxes as centre and size in shares of the frame."""
        self.texts.rows = [text.tokens for text in texts]
        longest = max(len(text.tokens) for text in texts)
        padded = ceil(longest / PAD_TO) * PAD_TO
        tokens = torch.zeros(len(texts), padded, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, text in enumerate(texts):
            tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
            mask[row, : len(text.tokens)] = 1
        found = self.model(
            pixel_values=self.prepare(frames),
            input_ids=tokens.to(self.device),
            attention_mask=mask.to(self.device),
        )
        return found.logits.float(), found.pred_boxes.float()

    def prepare(self, frames: Frames) -> Float[Tensor, "b 3 h w"]:
        rule = self.processor.image_processor
        size = detector_size(frames.shape[-2:], rule.size["shortest_edge"], rule.size["longest_edge"])
        return self.normalise(resize(frames, size, PIL_FILTERS[int(rule.resample)]), self.dtype)


def _by_noun(logits: Float[Tensor, "b q t"], texts: Sequence[Caption]) -> Float[Tensor, "b q nouns"]:
    """The best of each noun's tokens; −∞ where a frame's case has fewer nouns than another one's."""
    found = logits.new_full((*logits.shape[:2], max(len(text.spans) for text in texts)), float("-inf"))
    for row, text in enumerate(texts):
        for noun, (first, end) in enumerate(text.spans):
            found[row, :, noun] = logits[row, :, first:end].amax(dim=-1)
    return found
