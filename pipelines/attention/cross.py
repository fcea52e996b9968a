"""Attention processors that look on (capture) and that bias cross-attention (guidance).

Capture wraps the processor that is installed when it comes, so it must come after an engine has put in its own.
Guidance takes the place of cross-attention's, which is local to a rank. Each is in place for one forward only, the
conditional pass: outside it nothing of the model is changed.

Names: B clips of a batch, n tokens of this rank's shard, R rows to compute again, T text tokens, N heads, D head size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from numina.bias import ShardGuidance, take
from pipelines.base import Attention, Processor, See, VideoModel
from pipelines.parallel.shard import Shard
from pipelines.private.diffusers import wan_projections

Rotary = tuple[Tensor, Tensor]


def project(
    attention: Attention, hidden: Tensor, text: Tensor | None, rotary: Rotary | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as Wan's own processor makes them: [B, n or T, N, D], normalised and rotated."""
    query, key, value = wan_projections(attention, hidden, text)
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
    """Hands queries [B, n, N, D] and keys of one call to `see`; the wrapped processor computes the block's output.

    They are what `norm_q` and `norm_k` give while it runs, rotated: nothing is projected twice, and on a rank they are
    of its own rows. In a compiled block this is never traced: the graph breaks here, for this one call, and where it
    mustn't (`fullgraph=True`) torch says so; captures run under `torch.compiler.set_stance("force_eager")`.
    """

    def __init__(self, inner: Processor, see: See):
        self.inner = inner
        self.see = see

    @torch.compiler.disable
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
        **options: Any,
    ) -> Tensor:
        with outputs_of(attn.norm_q, attn.norm_k) as seen:
            output = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **options)
        check_seen_once(self.inner, seen)
        query, key = (given[0].unflatten(2, (attn.heads, -1)) for given in seen)
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        self.see(query, key)
        return output


@contextmanager
def outputs_of(*modules: torch.nn.Module, copy: bool = False) -> Iterator[list[list[Tensor]]]:
    """Per module, what its calls within the block give; copies, where that will be written over."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def keep(given: list[Tensor], output: Tensor) -> None:
        given.append(output.clone() if copy else output)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, given=given: keep(given, output))
        for module, given in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def check_seen_once(inner: Processor, seen: list[list[Tensor]]) -> None:
    """Raises RuntimeError where a processor didn't call `norm_q` and `norm_k` once each."""
    if [len(given) for given in seen] != [1, 1]:
        raise RuntimeError(
            f"{type(inner).__name__} called norm_q and norm_k {len(seen[0])} and {len(seen[1])} times; looking on takes"
            " a processor that, like diffusers' own, calls each once: install that one for this pass"
        )


class GuidedCrossAttention:
    """Cross-attention under a batch's guidance, on this rank's rows (arXiv 2604.08546 §3.4).

    One graph serves every prompt, step and block under torch.compile: all that varies is in tensors, and nothing here
    asks for a value on the host.
    """

    def __init__(self, guidance: ShardGuidance, shard: Shard):
        self.guidance = guidance
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
        guidance = self.guidance
        query, key, value = project(attn, hidden_states, guidance.arrange(encoder_hidden_states), rotary_emb)
        # The one collective goes first: it is under way while this rank attends to its own rows.
        means = None if guidance.copies is None else guidance.copies.mean_queries(query, self.shard.sum)
        mask = None if guidance.bias is None else guidance.bias.mask(key)
        output = attend(query, key, value, mask).flatten(2)  # [B, n, N·D]
        flat = output.view(-1, output.shape[2])
        for rows, again in self._again(query, key, value, means):
            flat.index_copy_(0, rows.flatten(), again.flatten(2).flatten(0, 1))
        return attn.to_out[1](attn.to_out[0](output.type_as(hidden_states)))

    def _again(self, query: Tensor, key: Tensor, value: Tensor, means: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Rows [B, R] that are computed again under their own mask, and their outputs [B, R, N, D]."""
        guidance, found = self.guidance, []
        if guidance.rows is not None:
            assert guidance.row_bias is not None
            mask = guidance.row_bias.mask(key)
            found.append((guidance.rows, attend(take(query, guidance.rows), key, value, mask)))
        if guidance.copies is not None:
            assert means is not None
            copies = guidance.copies
            chosen = take(query, copies.rows)
            scores = copies.mean_scores(means, key)
            mask = guidance.padded(copies.mask(chosen, key, scores, guidance.delta))
            found.append((copies.rows, attend(chosen, key, value, mask)))
        return found


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [B, n, N, D] to [B, T, N, D] in any kernel that takes the mask [B, 1 or N, n, T]: [B, n, N, D]."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return nnf.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@contextmanager
def guided(model: VideoModel, shard: Shard, guidance: ShardGuidance, delta: float) -> Iterator[None]:
    """Guides the attention of all blocks to the text at intensity `delta`; at 0 the model stays as it is.

    `guidance` must have been prepared for the rows of `shard`. Every rank of the shard's group must take part.
    """
    if delta == 0.0:
        yield
        return
    guidance.set(delta)
    with processors(model.guided(guidance, shard)):
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
