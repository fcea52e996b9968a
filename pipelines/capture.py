"""Identification's look into one block: per frame the best self-attention head, per noun the best cross-attention head.

Only what clustering needs leaves the ranks: three components per token and one map per noun, never all heads' maps.
Names: F frames, n tokens of a frame, N heads, D head size, R ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from numina.config import IdentifyConfig
from numina.heads import cross_response, frame_attention, score_heads, select_response
from numina.layout import Capture
from numina.tokens import TokenSpans
from pipelines.attention import Onlooker, processors
from pipelines.base import Grid, VideoModel
from pipelines.parallel import Shard


class BlockCapture:
    """Collects what one forward shows; `result()` is the same on every rank and for any number of ranks."""

    def __init__(self, grid: Grid, shard: Shard, spans: Sequence[TokenSpans], config: IdentifyConfig):
        self.grid = grid
        self.shard = shard
        self.tokens = [span.phrase if config.tokens == "phrase" else span.noun for span in spans]
        self.config = config
        self.components: Tensor | None = None  # [F, H, W, 3]
        self.self_heads: Tensor | None = None  # [F], the chosen head of each frame
        self.responses: Tensor | None = None  # [nouns, F, H, W]
        self.cross_heads: Tensor | None = None  # [nouns, F], -1 for the mean of all

    def see_self_attention(self, query: Tensor, key: Tensor) -> None:
        """Own rows [n/R, N, D] → each rank scores its own heads on whole frames; the winners' owners fill them in."""
        heads = query.shape[1]
        query, key = self.shard.swap_rows_for_heads(query), self.shard.swap_rows_for_heads(key)
        plane = (self.grid.height, self.grid.width)
        scores, components = [], []
        for q, k in zip(query.chunk(self.grid.frames), key.chunk(self.grid.frames), strict=True):
            frame_scores, frame_components = score_heads(frame_attention(q, k), plane, self.config)
            scores.append(frame_scores)
            components.append(frame_components)
        best = self.shard.gather(torch.stack(scores), dim=1).argmax(dim=1)  # [F]
        own = self.shard.heads(heads)
        winners = torch.zeros(self.grid.frames, *plane, 3, device=query.device)
        for frame, head in enumerate(best.tolist()):
            if own.start <= head < own.stop:
                winners[frame] = components[frame][head - own.start]
        self.components, self.self_heads = self.shard.sum(winners), best

    def see_cross_attention(self, query: Tensor, key: Tensor) -> None:
        """Own rows [n/R, N, D] against all text → every noun's map of the whole clip."""
        own = cross_response(query, key, self.tokens)  # [nouns, N, n/R]
        maps = self.shard.gather(own, dim=2).unflatten(2, (self.grid.frames, self.grid.height, self.grid.width))
        self.responses, self.cross_heads = select_response(maps, self.config.head)

    def result(self) -> Capture:
        assert self.responses is not None, "the captured block was never called"
        components = None if self.components is None else self.components.float().cpu().numpy()
        return Capture(responses=self.responses.float().cpu().numpy(), components=components)


@contextmanager
def capturing(model: VideoModel, capture: BlockCapture) -> Iterator[None]:
    """Lets `capture` look on in the reference block; what the block computes stays as it is."""
    block = capture.config.capture_block(model.depth)
    cross = model.cross_attention(block)
    watched = {cross: Onlooker(cross.processor, capture.see_cross_attention)}
    if capture.config.needs_self_attention:
        own = model.self_attention(block)
        watched[own] = Onlooker(own.processor, capture.see_self_attention)
    with processors(watched):
        yield
