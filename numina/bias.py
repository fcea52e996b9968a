"""A guidance plan on the rows of one rank: the biases, masks and copies that its attention needs (method.md §5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from numina.config import GuideConfig
from numina.guidance import GuidancePlan
from numina.private.torch import mark_dynamic, mark_static
from numina.regions import Region

SPARSE = 1 / 3  # share of rows up to which computing them again is cheaper than a mask over all (facts.md)
TAIL_STEP = 16  # tail columns come in multiples of this: a prompt's nouns seldom have more tokens
NOUN_STEP = 4  # references are padded to those of a multiple of this many nouns
SHORT = 256  # columns of a mask over all rows, for texts whose other tokens are padding
SPREAD = 16  # columns at least that padding gets: the roundings of their biases cancel but for the last one's
PARTS = 8  # in which references' rows are summed, so that so few sums fill a GPU


@dataclass(eq=False)
class Bias:
    """What is added to the tail columns of some rows, as a mask over all columns; linear in δ."""

    strengths: Float[Tensor, "clips 1 rows tail"]
    kept: Float[Tensor, "clips 1 rows columns"]  # the mask at the δ last set; of all text columns, or the tail alone

    def set(self, delta: float) -> None:
        """Brings the kept mask to δ, in place."""
        self.kept[..., -self.strengths.shape[-1] :] = self.strengths * delta

    def mask(self, key: Tensor) -> Tensor:
        """[B, 1, rows, columns] in the dtype of ``key`` [B, columns, N, D]."""
        return self.kept.to(key.dtype)


@dataclass(eq=False)
class Copies:
    """Rows that take scores from reference instances, beside what they are biased by."""

    per_head: bool  # overwrite "head": m per head and token; "global": one m for the reference
    rows: Int64[Tensor, "clips rows"]  # this shard's, to compute again, counted through the batch
    strengths: Float[Tensor, "clips 1 rows tail"]
    source: Int64[Tensor, "clips 1 rows tail"]  # the reference; one past the last where there is none
    copied: Bool[Tensor, "clips 1 rows tail"]  # whether there is one
    reference_rows: Int64[Tensor, "clips parts listed"]  # this shard's, of all references, counted through the batch
    membership: Float[Tensor, "clips parts references listed"]  # 1 where the row is the reference's
    share: Float[Tensor, "clips references 1"]  # 1 / rows of the reference, in all shards
    tokens: Float[Tensor, "clips references tail"]  # 1 / tokens of the reference's noun, on these tokens

    def mean_queries(self, query: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean queries of the references: [B, references, N·D], float32.

        They are all that ranks have to add up: every rank must call this, whatever rows it holds. Partial sums are
        rounded to the model's dtype, as every single query already is. The sum may be on its way when this returns.
        """
        rows = take(query, self.reference_rows).flatten(3)
        return sum_over_ranks((self.membership.to(query.dtype) @ rows).sum(dim=1, dtype=torch.float32) * self.share)

    def mean_scores(self, queries: Tensor, key: Tensor) -> Tensor:
        """Mean scores q·k/√D of the references on the tail columns: [B, N, references, E], float32.

        A mean score is the mean query's score.
        """
        means = queries.unflatten(2, key.shape[2:])
        return torch.einsum("brhd,behd->bhre", means, self._tail(key).float()) / key.shape[-1] ** 0.5

    def mask(self, chosen: Tensor, key: Tensor, means: Tensor, delta: Tensor) -> Tensor:
        """The mask [B, N or 1, R, T] with which plain attention of the ``chosen`` queries [B, R, N, D] is guided.

        Per head a copy's score becomes its reference's mean score m, strengthened by δ, or stays its own where that is
        higher: what is added is never below 0. A negative m becomes m/δ: m·δ, as published, pushes it the wrong way,
        down while δ > 1 should strengthen. So a larger δ is never a smaller score.
        """
        biased = self.strengths * delta
        if self.per_head:
            strengthened = torch.where(means >= 0, means * delta, means / delta)
            given = nnf.pad(strengthened, (0, 0, 0, 1)).gather(2, self.source.expand(-1, means.shape[1], -1, -1))
            own = torch.einsum("brhd,behd->bhre", chosen, self._tail(key)).float() / key.shape[3] ** 0.5
            return _before_tail(torch.where(self.copied, (given - own).clamp_min(0.0), biased), key)
        mean = (means.mean(dim=1) * self.tokens).sum(dim=-1)  # m, one for a reference
        given = nnf.pad(mean * delta, (0, 1)).gather(1, self.source.flatten(1)).view_as(self.source)
        own = chosen.flatten(2) @ self._tail(key).flatten(2).mT  # over all heads' channels: their sum
        own_mean = own.float().unsqueeze(1) / (key.shape[2] * key.shape[3] ** 0.5)
        return _before_tail(torch.where(self.copied, given - own_mean, biased), key)

    def _tail(self, text: Tensor) -> Tensor:
        return text[:, -self.source.shape[-1] :]


@dataclass(eq=False)
class ShardGuidance:
    """Plans of a batch of clips, made ready on the device for one shard's rows; once per batch.

    Where most rows change, ``bias`` is a mask over all of them; else ``rows`` are computed again and put in their
    place. So are the copies' own, whose mask alone is another one in each head. Whatever varies from prompt to prompt
    is in tensors of padded length, marked as dynamic, and δ is a tensor too: what torch.compile has made of one prompt
    serves the next.
    """

    order: Int64[Tensor, "clips text"]  # the text tokens, counted through the batch, each clip's tail last
    delta: Float[Tensor, ""]
    bias: Bias | None  # of all rows
    rows: Int64[Tensor, "clips chosen"] | None  # to compute again with a bias, counted through the batch
    row_bias: Bias | None  # of these
    copies: Copies | None  # where something may be overwritten
    padding: Float[Tensor, "clips 1 1 columns"] | None = None  # of columns that stand for several: log of how many
    at: float = 0.0  # δ, as the host knows it

    @classmethod
    def prepare(
        cls,
        plans: Sequence[GuidancePlan],
        rows: slice,
        text_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tail_alone: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> ShardGuidance:
        """For the rows of one shard, of clips of one size under one config; ``dtype`` is that of the model's queries.

        ``tail_alone``: masks have the tail's columns only, for attention that takes the tail by itself. ``lengths``:
        how many tokens of each text come before its padding, whose tokens must then all have one key and one value. A
        mask over all rows gets fewer columns: P equal ones weigh as much as c of them under a bias of log P/c.

        Rows past the clips' end (padding of a sequence shard) get no bias. Raises ``ValueError`` where plans don't fit
        together, or a noun's token isn't among the text tokens.
        """
        _check(plans, rows, text_tokens)
        tail = min(text_tokens, _padded(max(len(_special_tokens(plan)) for plan in plans), TAIL_STEP))
        nouns = _padded(max(len(plan.tokens) for plan in plans), NOUN_STEP)
        clips = [_ClipRules.of(plan, rows, text_tokens, tail, nouns) for plan in plans]
        # Normal tensors, wherever this is called: inference tensors can't be set again outside inference mode, and
        # torch.compile would tell them apart.
        with torch.inference_mode(False):
            columns = tail if tail_alone else text_tokens
            target = _Target(text_tokens, columns, torch.device(device), dtype)
            return cls._ready(clips, plans, target, None if tail_alone else lengths)

    @classmethod
    def _ready(
        cls, clips: list[_ClipRules], plans: Sequence[GuidancePlan], target: _Target, lengths: Sequence[int] | None
    ) -> ShardGuidance:
        overwrite = plans[0].config.overwrite
        changed, copied = np.stack([clip.changed for clip in clips]), np.stack([clip.copied for clip in clips])
        dense = bool(changed.mean() > SPARSE)
        bias, rows, row_bias, copies, padding = None, None, None, None, None
        order = np.stack([clip.order for clip in clips])
        if dense:
            if lengths is not None and (short := _shortened(order, lengths, clips[0].strengths.shape[1], target.dtype)):
                order, padding = short[0], target.tensor(short[1])[:, None, None].to(target.dtype)
                target = replace(target, columns=order.shape[1])
            bias = target.bias(np.stack([clip.strengths for clip in clips]))
            if padding is not None:
                bias.kept.copy_(padding.expand_as(bias.kept))
                _columns(bias.kept)
        else:
            again = _row_lists(changed & ~copied, 0)
            rows = target.dynamic(_through_batch(again, changed.shape[1]), 1)
            row_bias = target.bias(_of_rows([clip.strengths for clip in clips], again), dynamic=True)
        if overwrite != "none":  # every shard has a part in the references, also one without copies
            copies = target.copies(clips, _row_lists(copied, 1), overwrite == "head")
        return cls(
            order=_columns(target.tensor(_through_batch(order, target.text_tokens))),
            delta=torch.zeros((), device=target.device),
            bias=bias,
            rows=rows,
            row_bias=row_bias,
            copies=copies,
            padding=None if padding is None else _columns(padding),
        )

    def set(self, delta: float) -> None:
        """Sets δ for the forwards to come; masks are written only where it is another one."""
        if delta == self.at:
            return
        self.at = delta
        self.delta.fill_(delta)
        for bias in (self.bias, self.row_bias):
            if bias is not None:
                bias.set(delta)

    @property
    def tail(self) -> int:
        """E, how many columns may change."""
        found = self.bias or self.row_bias
        assert found is not None, "rows are biased, or computed again"
        return found.strengths.shape[-1]

    def arrange(self, text: Tensor) -> Tensor:
        """The text's states [B, T, C] with each clip's tail last; [B, columns, C] where padding is put together."""
        return take(text, self.order)

    def padded(self, mask: Tensor) -> Tensor:
        """A mask of some rows of its own [B, 1 or N, R, columns], with what padding's columns stand for."""
        return mask if self.padding is None else mask + self.padding.to(mask.dtype)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """[B, n, …] at rows [B, R] counted through the batch: [B, R, …]."""
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _before_tail(values: Tensor, key: Tensor) -> Tensor:
    """A mask [B, 1 or N, rows, T] of its tail columns [B, 1 or N, rows, E], for ``key`` [B, T, N, D]."""
    return nnf.pad(values.to(key.dtype), (key.shape[1] - values.shape[-1], 0))


@dataclass(frozen=True)
class _Target:
    """Where prepared tensors go."""

    text_tokens: int
    columns: int  # of a mask: these, or the tail's
    device: torch.device
    dtype: torch.dtype

    def tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def dynamic(self, values: np.ndarray, dim: int) -> Tensor:
        return _dynamic(self.tensor(values), dim)

    def bias(self, strengths: Float[np.ndarray, "clips rows tail"], *, dynamic: bool = False) -> Bias:
        values = self.tensor(strengths[:, None])
        kept = torch.zeros(*values.shape[:3], self.columns, device=self.device, dtype=self.dtype)
        return Bias(_dynamic(values, 2), _dynamic(kept, 2)) if dynamic else Bias(values, kept)

    def copies(self, clips: list[_ClipRules], again: Int64[np.ndarray, "clips rows"], per_head: bool) -> Copies:
        sizes = np.stack([clip.reference_sizes for clip in clips])
        in_references = np.stack([clip.membership.any(axis=0) for clip in clips])
        listed = _row_lists(in_references, 2)
        membership = np.stack([clip.membership[:, own] for clip, own in zip(clips, listed, strict=True)])
        # What pads a list is in it already, and must not count twice.
        membership &= (np.arange(listed.shape[1]) < in_references.sum(axis=1)[:, None])[:, None]
        by_part = membership.reshape(*membership.shape[:2], PARTS, -1).swapaxes(1, 2)
        reference_rows = _through_batch(listed, in_references.shape[1]).reshape(len(clips), PARTS, -1)
        source = _of_rows([clip.source for clip in clips], again)[:, None]
        return Copies(
            per_head=per_head,
            rows=self.dynamic(_through_batch(again, in_references.shape[1]), 1),
            strengths=self.dynamic(_of_rows([clip.strengths for clip in clips], again)[:, None], 2),
            source=self.dynamic(np.where(source < 0, sizes.shape[1], source), 2),
            copied=self.dynamic(source >= 0, 2),
            reference_rows=self.dynamic(reference_rows, 2),
            membership=_dynamic(self.tensor(by_part).to(self.dtype), 3),
            share=self.tensor((1 / np.maximum(sizes, 1)).astype(np.float32)[..., None]),
            tokens=self.tensor(np.stack([clip.reference_tokens for clip in clips])),
        )


@dataclass(frozen=True)
class _ClipRules:
    """One clip's rules on a shard's rows and the tail columns. A reference is numbered noun · F + frame."""

    order: Int64[np.ndarray, " text"]
    strengths: Float[np.ndarray, "rows tail"]  # what δ is multiplied by
    source: Int64[np.ndarray, "rows tail"]  # the reference whose score is taken, −1: none
    membership: Bool[np.ndarray, "references rows"]  # of the shard's rows
    reference_sizes: Int64[np.ndarray, " references"]  # rows in all shards
    reference_tokens: Float[np.ndarray, "references tail"]  # 1 / tokens of its noun, on these

    @property
    def copied(self) -> Bool[np.ndarray, " rows"]:
        return np.asarray((self.source >= 0).any(axis=1))

    @property
    def changed(self) -> Bool[np.ndarray, " rows"]:
        return np.asarray(self.copied | (self.strengths != 0).any(axis=1))

    @classmethod
    def of(cls, plan: GuidancePlan, rows: slice, text_tokens: int, tail: int, nouns: int) -> _ClipRules:
        """The table of the module's docstring, row by row and token by token, with references of ``nouns`` nouns."""
        special = _special_tokens(plan)
        order = np.concatenate([np.setdiff1d(np.arange(text_tokens), special), special])
        of_noun = np.stack([np.isin(order[text_tokens - tail :], tokens) for tokens in plan.tokens])  # [nouns, tail]
        frames, length = plan.regions.shape[1], rows.stop - rows.start
        own = np.arange(rows.start, max(rows.start, min(rows.stop, plan.rows)))
        regions = plan.regions.reshape(len(plan.regions), -1)[:, own]  # [nouns, rows]
        numbers = np.arange(len(regions))[:, None] * frames + own // (plan.rows // frames)

        by_frame = np.zeros((nouns, frames), dtype=np.int64)
        if plan.config.overwrite != "none":
            copied_frames = (plan.regions == Region.ADD_COPY).any(axis=(2, 3))
            by_frame[: len(regions)] = (plan.regions == Region.REFERENCE).sum(axis=(2, 3)) * copied_frames
        sizes = by_frame.ravel()
        exists = sizes[numbers] > 0
        source = np.full((length, tail), -1)
        for noun, copies in enumerate((regions == Region.ADD_COPY) & exists):
            source[np.ix_(np.flatnonzero(copies), of_noun[noun])] = numbers[noun, copies, None]
        membership = np.zeros((len(sizes), length), dtype=bool)
        noun_of, row = np.nonzero((regions == Region.REFERENCE) & exists)
        membership[numbers[noun_of, row], row] = True

        added = (regions == Region.ADD_DISC) | (regions == Region.ADD_COPY)
        per_noun = _strengths(plan.config)[regions] - plan.config.other * (added.any(axis=0) & ~added)
        per_noun = per_noun * plan.scale
        strengths = np.zeros((length, tail), dtype=np.float32)
        strengths[: len(own)] = per_noun.T @ of_noun
        strengths[source >= 0] = 0.0

        tokens = np.zeros((nouns, tail), dtype=np.float32)
        tokens[: len(of_noun)] = of_noun / np.maximum(of_noun.sum(axis=1, keepdims=True), 1)
        return cls(order, strengths, source, membership, sizes, tokens.repeat(frames, axis=0))


def _shortened(
    order: Int64[np.ndarray, "clips text"], lengths: Sequence[int], tail: int, dtype: torch.dtype
) -> tuple[Int64[np.ndarray, "clips columns"], Float[np.ndarray, "clips columns"]] | None:
    """Each clip's text in ``SHORT`` columns, and what padding's are biased by; None where that doesn't do.

    A head of written tokens, then padding as often as there is room, then the tail as it was.
    """
    if order.shape[1] <= SHORT:
        return None
    orders, biases = [], []
    for own, length in zip(order, lengths, strict=True):
        head = own[:-tail]
        written, padding = head[head < length], head[head >= length]
        room = SHORT - tail - len(written)
        if room < SPREAD:
            return None
        orders.append(np.concatenate([written, np.full(room, padding[0]), own[-tail:]]))
        biases.append(np.concatenate([np.zeros(len(written)), _log_shares(len(padding), room, dtype), np.zeros(tail)]))
    return np.stack(orders), np.stack(biases).astype(np.float32)


def _log_shares(total: int, parts: int, dtype: torch.dtype) -> Float[np.ndarray, " parts"]:
    """Numbers of a dtype whose exponentials add up to ``total``: each makes up for the roundings of those before."""
    found = []
    left = float(total)
    for remaining in range(parts, 0, -1):
        found.append(float(torch.tensor(math.log(left / remaining), dtype=torch.float64).to(dtype)))
        left -= math.exp(found[-1])
    return np.array(found)


def _columns(x: Tensor) -> Tensor:
    """Tells torch.compile that [B, …, columns] have few lengths: kernels with a mask must know theirs."""
    mark_static(x, x.dim() - 1)
    return x


def _check(plans: Sequence[GuidancePlan], rows: slice, text_tokens: int) -> None:
    if rows.step not in (None, 1):
        raise ValueError(f"rows = {rows}, but a shard is a contiguous run: use a step of 1")
    for plan in plans:
        if (plan.config, plan.regions.shape[1:]) != (plans[0].config, plans[0].regions.shape[1:]):
            raise ValueError("plans of one batch differ in config or grid: prepare them apart")
        beyond = _special_tokens(plan)[_special_tokens(plan) >= text_tokens].tolist()
        if beyond:
            raise ValueError(
                f"text tokens {beyond} of a plan, but the text has {text_tokens}: encode the prompt of the plan"
            )


def _strengths(config: GuideConfig) -> Float[np.ndarray, " regions"]:
    """What δ is multiplied by, per region; for copies, where nothing is overwritten."""
    strengths = np.zeros(len(Region))
    strengths[Region.NONE] = -config.elsewhere
    strengths[Region.KEEP] = strengths[Region.REFERENCE] = config.keep
    strengths[Region.REMOVE] = -config.remove
    strengths[Region.ADD_DISC] = strengths[Region.ADD_COPY] = config.add
    return strengths


def _special_tokens(plan: GuidancePlan) -> Int64[np.ndarray, " special"]:
    """Text tokens of any noun, ascending."""
    return np.unique(np.array([token for tokens in plan.tokens for token in tokens], dtype=np.int64))


def _padded(count: int, step: int) -> int:
    """The next multiple of ``step``, at least one."""
    return max(1, math.ceil(count / step)) * step


def _row_lists(rows: Bool[np.ndarray, "clips rows"], kind: int) -> Int64[np.ndarray, "clips length"]:
    """Per clip the rows that are set, padded with one of them (row 0 if there is none): what is written to a row
    twice is the same value.

    Lengths are a multiple of about 1/64 of the shard, a power of two from 32 to 512, plus an eighth of that times the
    ``kind`` of list, 0 to 2: torch.compile takes lengths that happen to be equal for the same, so no two kinds' are.
    """
    step = max(32, min(512, 1 << (rows.shape[1] // 32).bit_length() >> 1))
    length = _padded(int(rows.sum(axis=1).max()) - kind * step // 8, step) + kind * step // 8
    lists = np.zeros((len(rows), length), dtype=np.int64)
    for padded, chosen in zip(lists, map(np.flatnonzero, rows), strict=True):
        padded[:] = chosen[0] if len(chosen) else 0
        padded[: len(chosen)] = chosen
    return lists


def _of_rows(values: Sequence[np.ndarray], lists: Int64[np.ndarray, "clips length"]) -> np.ndarray:
    """Each clip's values [rows, tail] at its list of rows."""
    return np.stack([own[chosen] for own, chosen in zip(values, lists, strict=True)])


def _through_batch(numbers: Int64[np.ndarray, "clips length"], per_clip: int) -> Int64[np.ndarray, "clips length"]:
    """Numbers within a clip as numbers within the batch, clip after clip."""
    return numbers + np.arange(len(numbers))[:, None] * per_clip


def _dynamic(x: Tensor, dim: int) -> Tensor:
    """Tells torch.compile that this length varies from prompt to prompt."""
    mark_dynamic(x, dim)
    return x
