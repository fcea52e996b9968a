"""Identification's look into a block: per frame the best self-attention head, per noun the best cross-attention head.

Only what clustering needs leaves the ranks: three components per token and one map per noun, never all heads' maps.
Whatever engine computes attention, what is seen are a rank's own rows: whole frames of keys come together here, by one
exchange of rows for heads in the watched blocks alone. So a ring's ranks are captured as well as Ulysses ones.
Names: B clips, F frames, n tokens of a frame, N heads, D head size, R ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from numina.affinity import chosen_coordinates, clip_coordinates
from numina.config import IdentifyConfig
from numina.fused.responses import normalised
from numina.heads import cross_response, deviation, score_deviation, score_heads, select_response
from numina.layout import Capture, combine_blocks
from numina.prompts.tokens import TokenSpans
from pipelines.attention.cross import processors
from pipelines.base import Attention, GenerationConfig, Grid, Processor, See, VideoModel
from pipelines.parallel.shard import Shard


class BlockCapture:
    """Collects what one block shows in one forward, for a batch; the same on every rank and any number of ranks."""

    def __init__(self, grid: Grid, shard: Shard, spans: Sequence[Sequence[TokenSpans]], config: IdentifyConfig):
        self.grid = grid
        self.shard = shard
        self.tokens = [[getattr(span, config.tokens) for span in clip] for clip in spans]
        self.config = config
        self.components: Tensor | None = None  # [B, F, H, W, 3]
        self.self_heads: Tensor | None = None  # [B, F], the chosen head of each frame
        self.responses: list[Tensor] = []  # per clip [nouns, F, H, W]
        self.cross_heads: list[Tensor] = []  # per clip [nouns, F], -1 for the mean of all
        self.phrases = [sorted({token for span in clip for token in span.phrase}) for clip in spans]
        self.deviations: list[Tensor] = []  # per clip, of the phrases' scores
        self.coordinates: list[Tensor] = []  # per clip [N, F, H, W, r] in half precision, of every head

    def see_affinity(self, query: Tensor, key: Tensor) -> None:
        """Own rows [B, n/R, N, D] → every head's coordinates of the whole clip; ranks add sums and share the rest."""
        own = self.shard.rows(self.grid.tokens)
        present, size = self.shard.present(self.grid.tokens), self.grid.height * self.grid.width
        frame = torch.arange(own.start, own.start + present, device=query.device) // size
        for q, k in zip(query[:, :present], key[:, :present], strict=True):
            found = clip_coordinates(q, k, frame, (self.grid.frames, size), self.shard.sum)
            whole = self.shard.gather_rows(self._padded(found, query.shape[1]), dim=1, tokens=self.grid.tokens)
            self.coordinates.append(whole.unflatten(1, (self.grid.frames, self.grid.height, self.grid.width)))

    def _padded(self, x: Tensor, rows: int) -> Tensor:
        return nnf.pad(x, (0, 0, 0, rows - x.shape[1]))

    def see_self_attention(self, query: Tensor, key: Tensor) -> None:
        """Own rows [B, n/R, N, D] → every rank scores its own heads on whole frames; winners' owners fill in theirs."""
        own = self.shard.heads(query.shape[2])
        query, key = (self._by_frame(self.shard.swap_rows_for_heads(x, self.grid.tokens)) for x in (query, key))
        frames, size = query.shape[:2]
        scores = torch.full((frames, size), -inf, device=query.device)  # of heads that only fill up the last ranks
        components = query.new_zeros(frames, size, self.grid.height, self.grid.width, 3, dtype=torch.float32)
        if real := own.stop - own.start:
            scores[:, :real], components[:, :real] = score_heads(
                query[:, :real], key[:, :real], (self.grid.height, self.grid.width), self.config
            )
        best = self.shard.gather(scores, dim=1).argmax(dim=1)  # [B·F]
        mine = (best >= own.start) & (best < own.stop)
        winners = components[torch.arange(frames, device=best.device), (best - own.start).clamp(0, size - 1)]
        winners = torch.where(mine[:, None, None, None], winners, 0.0)
        self.components = self.shard.sum(winners).unflatten(0, (-1, self.grid.frames))
        self.self_heads = best.unflatten(0, (-1, self.grid.frames))

    def _by_frame(self, x: Tensor) -> Tensor:
        """[B, F·n, N, D] → [B·F, N, n, D]."""
        return x.unflatten(1, (self.grid.frames, -1)).flatten(0, 1).transpose(1, 2)

    def see_cross_attention(self, query: Tensor, key: Tensor) -> None:
        """Own rows [B, n/R, N, D] against all text → every noun's map of the whole clip."""
        present = self.shard.present(self.grid.tokens)
        for clip_query, clip_key, tokens, phrases in zip(query, key, self.tokens, self.phrases, strict=True):
            own = cross_response(clip_query, clip_key, tokens)  # [nouns, N, n/R]
            maps = self.shard.gather_rows(own, dim=2, tokens=self.grid.tokens)
            maps = maps.unflatten(2, (self.grid.frames, self.grid.height, self.grid.width))
            responses, heads = select_response(maps, self.config.head)
            self.responses.append(responses)
            self.cross_heads.append(heads)
            sums = self.shard.sum(score_deviation(clip_query[:present], clip_key, phrases))
            self.deviations.append(deviation(sums))


LOOKS: dict[str, Callable[[BlockCapture], See | None]] = {
    "clusters": lambda seen: seen.see_self_attention,
    "fused": lambda seen: seen.see_affinity,
    "peaks": lambda seen: None,
}
"""What of self-attention each source of instances looks at."""


class ClipCapture:
    """What identification keeps of a batch's clips at step t*."""

    def __init__(
        self,
        model: VideoModel,
        generation: GenerationConfig,
        shard: Shard,
        spans: Sequence[Sequence[TokenSpans]],
        config: IdentifyConfig,
    ):
        self.model = model
        self.config = config
        grid = model.grid(generation)
        self.seen = {block: BlockCapture(grid, shard, spans, config) for block in config.capture_blocks(model.depth)}

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """Lets the capture look on in the reference blocks; what the blocks compute stays as it is."""
        watched: dict[Attention, Processor] = {}
        for block, seen in self.seen.items():
            see_self = LOOKS[self.config.source](seen)
            watched |= self.model.onlookers(block, seen.see_cross_attention, see_self)
        # A watched block would be compiled anew for this one pass.
        with processors(watched), torch.compiler.set_stance("force_eager"):
            yield

    def results(self) -> list[Capture]:
        """One capture per clip, off the GPU."""
        first, *_ = blocks = list(self.seen.values())
        assert all(block.responses for block in blocks), "a captured block was never called"
        components = None if first.components is None else first.components.float().cpu().numpy()
        return [
            self._capture(clip, blocks, None if components is None else components[clip])
            for clip in range(len(first.responses))
        ]

    def _capture(self, clip: int, blocks: Sequence[BlockCapture], components: np.ndarray | None) -> Capture:
        maps = torch.stack([block.responses[clip] for block in blocks])
        deviation = float(torch.stack([block.deviations[clip] for block in blocks]).mean())
        if self.config.source != "fused":
            combined = combine_blocks(maps.float().cpu().numpy(), self.config.combine)
            return Capture(combined, components, deviation=deviation)
        shares, peaks = normalised(maps)
        kept, _, _ = chosen_coordinates(torch.cat([block.coordinates[clip] for block in blocks]), shares)
        return Capture(shares.half().cpu().numpy(), None, kept.half().cpu().numpy(), peaks.cpu().numpy(), deviation)
