"""Looking on and guiding where text and video are one sequence of attention (MM-DiT, as CogVideoX).

The method's rules are about the scores of video rows on text columns. A mask over all of a joint attention would be
rows × rows, and the fast kernels take none. So the columns that may change, the *tail*, are attended by themselves,
under their small mask, and joined with all the others by the two parts' log-sum-exps:

    out = out₁ + σ(lse₂ − lse₁)·(out₂ − out₁)          1: all keys but the tail; 2: the tail

That is attention over both, to the kernels' rounding, and nothing cancels where a dominant token is suppressed.

Names: B clips, n video rows, T text tokens, L = T + n, E tail columns, R rows to compute again, N heads, D head size.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from numina.bias import ShardGuidance, take
from numina.private.torch import attention_kernels
from pipelines.attention.cross import Rotary, check_seen_once, outputs_of
from pipelines.base import Attention, Processor, See
from pipelines.parallel.shard import Shard

_cpu_attention, _cudnn_attention, _efficient_attention = attention_kernels()

SHORT = 128  # keys up to which the masked kernel serves unmasked rows too


def project(attention: Attention, text: Tensor, video: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of text, then video, as CogVideoX's own processor makes them: [B, N, L, D]."""
    hidden = torch.cat([text, video], dim=1)
    query, key, value = (
        layer(hidden).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    query = query if attention.norm_q is None else attention.norm_q(query)
    key = key if attention.norm_k is None else attention.norm_k(key)
    if rotary is not None:
        after = text.shape[1]
        query[:, :, after:] = apply_rotary_emb(query[:, :, after:], rotary)
        key[:, :, after:] = apply_rotary_emb(key[:, :, after:], rotary)
    return query, key, value


class JointOnlooker:
    """Hands the video's queries [B, n, N, D], with the text's keys and where asked with the video's own, to `see_…`;
    the wrapped processor computes the block's output.

    They are what `norm_q` and `norm_k` give while it runs: nothing is projected twice.
    """

    def __init__(self, inner: Processor, see_cross: See, see_self: See | None):
        self.inner = inner
        self.see_cross = see_cross
        self.see_self = see_self

    @torch.compiler.disable
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        # Copies: diffusers' processor rotates what the norms give in place.
        with outputs_of(attn.norm_q, attn.norm_k, copy=True) as seen:
            output = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        check_seen_once(self.inner, seen)
        after = encoder_hidden_states.shape[1]
        query, key = (given[0][:, :, after:] for given in seen)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))
        query = query.transpose(1, 2)
        self.see_cross(query, seen[1][0][:, :, :after].transpose(1, 2))
        if self.see_self is not None:
            self.see_self(query, key.transpose(1, 2))
        return output


class GuidedJointAttention:
    """Joint attention under a batch's guidance of video rows on text columns (arXiv 2604.08546 §3.4).

    The rank must hold the whole sequence. One graph serves every prompt, step and block under torch.compile.
    """

    def __init__(self, guidance: ShardGuidance, shard: Shard):
        self.guidance = guidance  # prepared with `tail_alone`
        self.shard = shard

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        query, key, value = project(attn, encoder_hidden_states, hidden_states, image_rotary_emb)
        text, tail = encoder_hidden_states.shape[1], self.guidance.tail
        for x in (key, value):  # the tail first: both parts are then views
            x[:, :, :text] = self._tail_first(x[:, :, :text], tail)
        out, lse = attend(query, key[:, :, tail:], value[:, :, tail:])
        tail_out, tail_lse = self._attend_tail(query, key[:, :, :tail], value[:, :, :tail], text)
        share = torch.sigmoid(tail_lse - lse).unsqueeze(-1).to(out.dtype)
        joined = torch.lerp(out, tail_out, share)
        hidden = attn.to_out[1](attn.to_out[0](joined.transpose(1, 2).flatten(2)))
        return hidden[:, text:], hidden[:, :text]

    def _tail_first(self, x: Tensor, tail: int) -> Tensor:
        """[B, N, T, D] in guidance's order, turned round."""
        ordered = self.guidance.arrange(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1))
        return ordered.roll(tail, dims=1).transpose(1, 2)

    def _attend_tail(self, query: Tensor, key: Tensor, value: Tensor, text: int) -> tuple[Tensor, Tensor]:
        """Attention [B, N, L, D] to the tail [B, N, E, D] alone, under its mask, and its log-sum-exp [B, N, L]."""
        bias = self.guidance.bias
        mask = None if bias is None else nnf.pad(bias.mask(key), (0, 0, text, 0))  # text rows are never biased
        out, lse = attend(query, key, value, mask)
        video = query[:, :, text:].transpose(1, 2)
        for rows, chosen in self._again(video, key.transpose(1, 2), value.transpose(1, 2)):
            again, again_lse = chosen
            clip = torch.arange(len(rows), device=rows.device)[:, None]
            row = rows - clip * video.shape[1] + text  # counted through the batch: see `ShardGuidance`
            out.transpose(1, 2)[clip, row] = again.transpose(1, 2)
            lse.transpose(1, 2)[clip, row] = again_lse.transpose(1, 2)
        return out, lse

    def _again(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Video rows [B, R], and their attention to the tail under a mask of their own; all [B, …, N, D]."""
        guidance = self.guidance
        if guidance.rows is not None:
            assert guidance.row_bias is not None
            mask = guidance.row_bias.mask(key)
            yield guidance.rows, _attend_rows(take(query, guidance.rows), key, value, mask)
        if guidance.copies is not None:
            copies = guidance.copies
            means = copies.mean_queries(query, self.shard.sum)
            chosen = take(query, copies.rows)
            scores = copies.mean_scores(means, key)
            mask = copies.mask(chosen, key, scores, guidance.delta)
            yield copies.rows, _attend_rows(chosen, key, value, mask)


def _attend_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of [B, R, N, D] and [B, E, N, D]."""
    return attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention [B, N, L, D] and its log-sum-exp [B, N, L], float32, under a mask [B, 1 or N, L, keys].

    By the kernels behind `scaled_dot_product_attention`, which itself keeps the second to itself.
    """
    if query.device.type == "cpu":
        out, lse = _cpu_attention(query, key, value, attn_mask=mask)
        return out, lse.float()
    if mask is None and query.dtype != torch.float32 and key.shape[2] > SHORT:
        out, lse, *_ = _cudnn_attention(query, key, value, None, True)
        return out, lse.flatten(2)
    if mask is not None:
        mask = mask.expand(-1, query.shape[1], -1, -1)
    out, lse, *_ = _efficient_attention(query, key, value, mask, True)
    return out, lse[..., : query.shape[2]]  # it pads
