"""Attention processors that look on (capture) and that bias cross-attention (guidance).

Capture wraps the processor that is installed when it comes, so it must come after an engine has put in its own.
Guidance takes the place of cross-attention's, which is local to a rank. Each is in place for one forward only, the
conditional pass: outside it nothing of the model is changed.

Names: n tokens of this rank's shard, T text tokens, N heads, D head size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from diffusers.models.transformers.transformer_wan import _get_qkv_projections
from torch import Tensor

from numina.guidance import GuidancePlan, Overwrite, overwrite_scores, reference_sums
from pipelines.base import VideoModel
from pipelines.parallel import Shard

Attention = Any  # diffusers' WanAttention
Processor = Callable[..., Tensor]
Rotary = tuple[Tensor, Tensor]


def project(
    attention: Attention, hidden: Tensor, text: Tensor | None, rotary: Rotary | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as Wan's own processor makes them: [B, n or T, N, D], normalised and rotated."""
    query, key, value = _get_qkv_projections(attention, hidden, text)
    query, key = attention.norm_q(query), attention.norm_k(key)
    query, key, value = (x.unflatten(2, (attention.heads, -1)) for x in (query, key, value))
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return query, key, value


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding on neighbouring pairs of channels; cosines and sines are [1, n, 1, D]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


class Onlooker:
    """Hands queries [B, n, N, D] and keys of one call to `see`; the wrapped processor computes the block's output."""

    def __init__(self, inner: Processor, see: Callable[[Tensor, Tensor], None]):
        self.inner = inner
        self.see = see

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
        **options: Any,
    ) -> Tensor:
        output = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **options)
        query, key, _ = project(attn, hidden_states, encoder_hidden_states, rotary_emb)
        self.see(query, key)
        return output


class GuidedCrossAttention:
    """Cross-attention with a guidance plan's bias on this rank's rows (arXiv 2604.08546 §3.4).

    The additive part is one mask over all rows; rows that copy a reference instance are computed once more with their
    scores overwritten, and put in their place.
    """

    def __init__(self, bias: Tensor, overwrites: tuple[Overwrite, ...], delta: float, shard: Shard):
        self.bias = bias  # [n, T]
        self.overwrites = overwrites
        self.delta = delta
        self.shard = shard

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
        **options: Any,
    ) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in project(attn, hidden_states, encoder_hidden_states, rotary_emb))
        mask = self.bias.to(query.dtype)
        output = nnf.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [1, N, n, D]
        if self.overwrites:
            self._recompute_copies(output[0], query[0], key[0], value[0])
        output = output.transpose(1, 2).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](output))

    def _recompute_copies(self, output: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrites the scores of copies [N, copies, T] with their reference's mean; `output` [N, n, D] in place."""
        sums, counts = reference_sums(query, self.overwrites)
        mean_query = self.shard.sum(sums) / self.shard.sum(counts).clamp_min(1)[:, None, None]  # [overwrites, N, D]
        keys = key.float().mT / query.shape[-1] ** 0.5  # [N, D, T]
        means = torch.einsum("ohd,hdt->oht", mean_query, keys)
        rows = np.unique(np.concatenate([overwrite.copies for overwrite in self.overwrites]))
        if not len(rows):
            return
        index = torch.from_numpy(rows).to(query.device)
        scores = query[:, index].float() @ keys + self.bias[index]
        among = [replace(over, copies=np.searchsorted(rows, over.copies)) for over in self.overwrites]
        weights = overwrite_scores(scores, means, among, self.delta).softmax(dim=-1)
        output[:, index] = (weights @ value.float()).to(output.dtype)


@contextmanager
def guided(model: VideoModel, shard: Shard, plan: GuidancePlan, delta: float, text_tokens: int) -> Iterator[None]:
    """Biases the cross-attention of all blocks by the plan at intensity `delta`."""
    rows = shard.rows(plan.rows)
    bias = plan.bias(delta, rows, text_tokens, device=model.device)
    processor = GuidedCrossAttention(bias, plan.overwrites(rows), delta, shard)
    with processors({model.cross_attention(block): processor for block in range(model.depth)}):
        yield


@contextmanager
def processors(replacements: Mapping[Attention, Processor]) -> Iterator[None]:
    """Puts attention processors in place for the duration of the block, and the old ones back after it."""
    before = {attention: attention.processor for attention in replacements}
    for attention, processor in replacements.items():
        attention.processor = processor
    try:
        yield
    finally:
        for attention, processor in before.items():
            attention.processor = processor
