"""OWLv2 through transformers: a box for every patch of a frame, scored with "a photo of a {noun}" of each noun.

Legend: b frames of a pass, q boxes proposed per frame (one for each patch).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from numina.errors import InputError
from pipelines.judges.base import JudgeConfig
from pipelines.judges.detector import Detector, Proposals
from pipelines.judges.images import resize_padded
from pipelines.judges.passes import Frames

Queries = Float[Tensor, "nouns width"]  # a case's nouns as the model's text embeddings


class Owlv2(Detector[Queries]):
    """Counts boxes that OWLv2 finds (arXiv 2306.09683)."""

    model_class = "Owlv2ForObjectDetection"

    def __init__(self, config: JudgeConfig) -> None:
        """Only the image's backbone is in half precision: texts and heads cost nothing, and rounding there changes
        counts."""
        super().__init__(config)
        model = self.model
        for part in (model.owlv2.text_model, model.owlv2.text_projection, model.class_head, model.box_head):
            part.float()

    def read(self, nouns: Sequence[str]) -> Queries:
        for noun in nouns:
            self.check_noun(noun, self.tokenizer(noun, add_special_tokens=False)["input_ids"])
        limit = self.model.config.text_config.max_position_embeddings
        read = self.tokenizer(
            [f"a photo of a {noun.lower()}" for noun in nouns], padding="max_length", max_length=limit
        )
        for noun, tokens in zip(nouns, read["input_ids"], strict=True):
            if len(tokens) > limit:
                raise InputError(
                    f"'a photo of a {noun.lower()}' is {len(tokens)} tokens, but OWLv2 reads {limit}; shorten the noun"
                )
        read = read.convert_to_tensors("pt")
        embeddings: Tensor = self.model.owlv2.get_text_features(**read.to(self.device)).pooler_output
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def propose(self, frames: Frames, texts: Sequence[Queries]) -> Proposals:
        logits, boxes = self.forward(frames, texts)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=-1) * max(frames.shape[-2:])
        best, nouns = logits.max(dim=-1)
        scores = best.sigmoid()
        return Proposals(boxes=corners, scores=scores, noun_scores=scores, nouns=nouns)

    def forward(
        self, frames: Frames, texts: Sequence[Queries]
    ) -> tuple[Float[Tensor, "b q nouns"], Float[Tensor, "b q 4"]]:
        """Logits with every noun, and boxes as centre and size in shares of the frame made square, both float32."""
        queries = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        known = torch.tensor([[number < len(text) for number in range(queries.shape[1])] for text in texts])
        grid = self.model.image_embedder(pixel_values=self.prepare(frames))[0]
        grid = grid.float()
        patches = grid.flatten(1, 2)
        logits, _ = self.model.class_predictor(patches, queries, known.to(self.device))
        return logits, self.model.box_predictor(patches, grid)

    def prepare(self, frames: Frames) -> Float[Tensor, "b 3 h w"]:
        size = self.processor.image_processor.size
        return self.normalise(resize_padded(frames, (size["height"], size["width"])), self.dtype)
