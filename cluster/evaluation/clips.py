"""An output's rows as arrays: what sums over a million clips need of them, in place of a million Python objects.

Legend: n clips, sorted by key; m targets, the nouns of the first clip's prompt, then the next one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from cluster.dataset.segments import first_of_each, union
from cluster.rows import ROW_SCHEMA, STAGES
from numina.stage import BESIDE_GANGS

if TYPE_CHECKING:
    from cluster.dataset.store import Store

COLUMNS = (
    *("key", "id", "prompt", "original_prompt", "negative_prompt", "targets", "strategy", "sample", "attempt"),
    *("strength", "chain", "seed", "model", "guided", "ulysses", "ring", "cfg", "timings", "gpu_seconds"),
    *("rank_seconds", "identified", "confidences", "layout_file", "left_alone", "committed_at"),
)
_AS_THEY_ARE = (
    *("key", "id", "prompt", "original_prompt", "negative_prompt", "targets", "strategy", "sample", "attempt"),
    *("strength", "chain", "seed", "model", "guided", "confidences"),
)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The rows of an output by columns."""

    keys: np.ndarray  # [n] bytes of the hex digits, ascending
    ids: pa.Array
    prompts: pa.Array  # as they were asked for
    strategies: list[str]  # what generated any of them
    strategy: Int[np.ndarray, " n"]  # a place in `strategies`
    attempt: Int[np.ndarray, " n"]
    strength: Float[np.ndarray, " n"]
    chain: Int[np.ndarray, " n"]  # the same number for all attempts of a sample
    unit: Int[np.ndarray, " n"]  # the same number for all clips of one prompt: id, prompt as asked, targets
    sample: Int[np.ndarray, " n"]  # the same number for all clips of one sample of a prompt
    order: Int[np.ndarray, " n"]  # of `Outcome.sample`, as text
    page: Int[np.ndarray, " n"]  # the same number for all clips of a prompt and a negative prompt
    target: Int[np.ndarray, " n"]  # the same number for clips of the same targets
    twin: Int[np.ndarray, " n"]  # the same number for clips of the same prompt, negative prompt, targets and seed
    models: list[str]
    model: Int[np.ndarray, " n"]
    cost: Float[np.ndarray, " n"]  # `rank_seconds`
    committed: Int[np.ndarray, " n"]  # microseconds since the epoch, 0 where unknown
    guided: Bool[np.ndarray, " n"]
    has_layout: Bool[np.ndarray, " n"]
    left_alone: Bool[np.ndarray, " n"]
    layout_known: Int[np.ndarray, " n"]  # nouns that were identified
    layout_right: Int[np.ndarray, " n"]  # of those, nouns whose identified count is the asked one
    on_gpus: bool  # whether the first clip was made on GPUs
    starts: Int[np.ndarray, " n+1"]  # of each clip's targets in the two below
    noun: Int[np.ndarray, " m"]  # a place in `nouns`
    asked: Int[np.ndarray, " m"]
    nouns: list[str]
    identified: Int[np.ndarray, " m"]  # counts of clips whose reading told how sure it is, else -1
    confidence: Float[np.ndarray, " m"]  # of those; NaN elsewhere

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def targets(self) -> Int[np.ndarray, " n"]:
        """The number of each clip's targets."""
        return np.diff(self.starts)

    @property
    def plain(self) -> Bool[np.ndarray, " n"]:
        """Whether a clip's prompt asks for no count."""
        return self.targets == 0

    def places(self, keys: pa.ChunkedArray) -> Int[np.ndarray, " k"]:
        """Where these keys are among the clips; -1 for those that aren't."""
        wanted = np.array(keys.to_pylist(), dtype="S")
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1)
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self) - 1)
        return np.where(self.keys[found] == wanted, found, -1)

    def texts(self, places: np.ndarray) -> list[str]:
        """The keys of clips."""
        return [key.decode() for key in self.keys[places].tolist()]

    def unit_of(self, place: int) -> tuple[Any, ...]:
        """Id, prompt and targets of a clip, as `Outcome.sample` has them."""
        own = slice(self.starts[place], self.starts[place + 1])
        targets = zip(self.noun[own].tolist(), self.asked[own].tolist(), strict=True)
        named = tuple((self.nouns[noun], count) for noun, count in targets)
        return self.ids[place].as_py(), self.prompts[place].as_py(), named


def read_clips(store: Store) -> Clips:
    """All rows of an output. Raises DamageError that names a file which can't be read."""
    tables = store.map_rows(COLUMNS, _reduced)
    empty = _reduced(pa.schema([ROW_SCHEMA.field(name) for name in COLUMNS]).empty_table())
    return clips_of(first_of_each(union(empty.schema, tables), "key"))


def clips_of(table: pa.Table) -> Clips:
    """The columns of rows that `_reduced` made, each once."""
    targets = table["targets"].combine_chunks()
    starts = _starts(targets)
    flat = targets.flatten()
    noun, nouns = ranks(pc.struct_field(flat, "noun"))
    asked = _numbers(pc.struct_field(flat, "count"))
    given, original = table["prompt"], table["original_prompt"]
    prompts = pc.if_else(pc.greater(pc.binary_length(original).fill_null(0), 0), original, given)
    target, _ = ranks(_texts_of(targets, noun, asked, nouns))
    id, _ = ranks(table["id"].fill_null("None"))
    prompt, distinct = ranks(prompts)
    number = _numbers(table["sample"])
    sample, _ = ranks(pa.array(number).cast(pa.string()))
    unit = joined(joined(2 * id + table["id"].is_null().to_numpy(), prompt, len(distinct)), target, len(table))
    order = np.empty(len(table), np.int64)
    ascending = np.lexsort((sample, target, prompt, id))
    changes = [np.diff(column[ascending], prepend=-1) != 0 for column in (sample, target, prompt, id)]
    order[ascending] = np.cumsum(np.logical_or.reduce(changes)) if len(table) else 0
    negative, _ = ranks(table["negative_prompt"].fill_null("\0"))
    actual, _ = ranks(given)
    seeds = np.unique(_numbers(table["seed"]), return_inverse=True)[1]
    twin = joined(joined(joined(actual, target, len(table)), negative, len(table)), seeds, len(table))
    chain = pc.if_else(pc.greater(pc.binary_length(table["chain"]).fill_null(0), 0), table["chain"], table["key"])
    strategy, strategies = ranks(table["strategy"])
    model, models = ranks(table["model"].fill_null(""))
    identified, confidence = _readings(table, starts)
    return Clips(
        keys=np.array(table["key"].to_pylist(), dtype="S"),
        ids=table["id"].combine_chunks(),
        prompts=_one(prompts),
        strategies=strategies.to_pylist(),
        strategy=strategy,
        attempt=_numbers(table["attempt"]),
        strength=table["strength"].fill_null(1.0).to_numpy(),
        chain=ranks(chain, ordered=False)[0],
        unit=unit,
        sample=joined(unit, sample, len(table)),
        order=order,
        page=joined(unit, negative, len(table)),
        target=target,
        twin=twin,
        models=models.to_pylist(),
        model=model,
        cost=table["cost"].to_numpy(),
        committed=table["committed"].to_numpy(),
        guided=table["guided"].fill_null(False).to_numpy(),
        has_layout=table["has_layout"].to_numpy(),
        left_alone=table["left_alone"].to_numpy(),
        layout_known=table["layout_known"].to_numpy(),
        layout_right=table["layout_right"].to_numpy(),
        on_gpus=bool(len(table)) and bool(table["on_gpus"][0].as_py()),
        starts=starts,
        noun=noun,
        asked=asked,
        nouns=nouns.to_pylist(),
        identified=identified,
        confidence=confidence,
    )


def _reduced(table: pa.Table) -> pa.Table:
    """What is kept of some rows: numbers in place of structures."""
    known, right = _layouts(table)
    added = {
        "cost": _costs(table),
        "committed": table["committed_at"].cast(pa.int64()).fill_null(0).to_numpy(),
        "has_layout": table["layout_file"].is_valid().to_numpy(),
        "left_alone": table["left_alone"].is_valid().to_numpy(),
        "on_gpus": table["gpu_seconds"].is_valid().to_numpy(),
        "layout_known": known,
        "layout_right": right,
    }
    reduced = table.select(_AS_THEY_ARE)
    for name, values in added.items():
        reduced = reduced.append_column(name, pa.array(values))
    sure = pc.greater(pc.list_value_length(table["confidences"]).fill_null(0), 0)
    identified = table["identified"].combine_chunks()
    counts = pc.struct_field(identified.flatten(), "count").cast(pa.int32())
    listed = pa.ListArray.from_arrays(pa.array(_starts(identified), pa.int32()), counts)
    return reduced.append_column("identified", pc.if_else(_one(sure), listed, pa.scalar(None, listed.type)))


def _costs(table: pa.Table) -> np.ndarray:
    """`cluster.evaluation.outcomes.rank_seconds` of each row."""
    timings = table["timings"].combine_chunks()
    stages = [stage for stage in STAGES if stage not in BESIDE_GANGS]
    busy = np.zeros(len(table))
    for stage in stages:
        busy += pc.struct_field(timings, stage).fill_null(0.0).to_numpy(zero_copy_only=False)
    for degree in ("ulysses", "ring", "cfg"):
        busy *= np.maximum(_numbers(table[degree]), 1)
    told = pc.coalesce(table["rank_seconds"], table["gpu_seconds"])
    return np.asarray(pc.coalesce(told, pa.chunked_array([busy])).to_numpy())


def _layouts(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the number of its nouns that were identified, and of those that have the asked count."""
    asked, read = table["targets"].combine_chunks(), table["identified"].combine_chunks()
    sizes = [pc.list_value_length(column).fill_null(0).to_numpy() for column in (asked, read)]
    known, right = np.zeros(len(table), np.int32), np.zeros(len(table), np.int32)
    paired = np.flatnonzero((sizes[0] == sizes[1]) & (sizes[0] > 0))
    some, others = asked.take(paired).flatten(), read.take(paired).flatten()
    of = np.repeat(paired, sizes[0][paired])
    same = pc.equal(pc.struct_field(some, "noun"), pc.struct_field(others, "noun")).fill_null(False)
    met = pc.equal(pc.struct_field(some, "count"), pc.struct_field(others, "count")).fill_null(False)
    apart = np.bincount(of, weights=~same.to_numpy(zero_copy_only=False), minlength=len(table)) > 0
    known[paired] = sizes[0][paired]
    right[:] = np.bincount(of, weights=met.to_numpy(zero_copy_only=False), minlength=len(table))
    for place in np.flatnonzero(apart | (sizes[0] != sizes[1]) & (sizes[1] > 0)).tolist():
        counts = {noun["noun"]: noun["count"] for noun in read[place].as_py()}
        found = [counts[own["noun"]] == own["count"] for own in asked[place].as_py() if own["noun"] in counts]
        known[place], right[place] = len(found), sum(found)
    return known, right


def _readings(table: pa.Table, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Identified counts and confidences by target, of rows that have as many of each as targets."""
    counts, sure = table["identified"].combine_chunks(), table["confidences"].combine_chunks()
    identified, confidence = np.full(starts[-1], -1), np.full(starts[-1], np.nan)
    sizes = [pc.list_value_length(column).fill_null(0).to_numpy() for column in (counts, sure)]
    read = np.flatnonzero((sizes[0] == np.diff(starts)) & (sizes[1] == sizes[0]) & (sizes[0] > 0))
    places = spread(starts[read], sizes[0][read])
    identified[places] = _numbers(counts.take(read).flatten())
    confidence[places] = sure.take(read).flatten().to_numpy(zero_copy_only=False)
    return identified, confidence


def _texts_of(targets: pa.ListArray, noun: np.ndarray, asked: np.ndarray, nouns: pa.Array) -> pa.Array:
    """Python's text of each row's tuple of (noun, count)."""
    _, first, code = np.unique(joined(noun, asked - asked.min(initial=0), None), return_index=True, return_inverse=True)
    texts = [repr((nouns[int(noun[place])].as_py(), int(asked[place]))) for place in first.tolist()]
    each = pa.array(texts, pa.string()).take(pa.array(code))
    lists = pa.ListArray.from_arrays(pa.array(_starts(targets), pa.int32()), each)
    text = pc.binary_join(lists, ", ")
    ends = pc.if_else(pc.equal(pc.list_value_length(lists), 1), ",)", ")")
    return pc.binary_join_element_wise("(", text, ends, "")


# --- arrays ---


def ranks(texts: pa.Array | pa.ChunkedArray, *, ordered: bool = True) -> tuple[np.ndarray, pa.Array]:
    """A number for each text, and the distinct texts by these numbers: in ascending order where that is asked for."""
    encoded = _one(texts.cast(pa.large_string())).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if not ordered:
        return codes, encoded.dictionary
    ascending = pc.sort_indices(encoded.dictionary).to_numpy()
    places = np.empty(len(ascending), np.int64)
    places[ascending] = np.arange(len(ascending))
    return places[codes], encoded.dictionary.take(pa.array(ascending))


def joined(one: np.ndarray, other: np.ndarray, others: int | None) -> np.ndarray:
    """A number for each pair of numbers; from 0 on, without gaps. `other` is below `others`."""
    most = int(other.max(initial=0)) + 1 if others is None else max(others, 1)
    return np.asarray(np.unique(one * most + other, return_inverse=True)[1])


def spread(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its size says."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - sizes, sizes) + np.repeat(starts, sizes)


def _starts(lists: pa.ListArray) -> np.ndarray:
    sizes = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Whole numbers; 0 for null."""
    return np.asarray(_one(column).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
