"""What an output has for a growing export: clips of which nothing more is made, each told once.

    committed rows ─► samples ─► every strategy that may keep one of a sample's clips is settled ─► its clips

A sample waits until its last attempt is made and judged, so that no later clip takes the place of one that is exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import commit_name, read_table, read_tables, union
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import Outcome, Row, outcomes, strategies_of
from cluster.export.config import ExportConfig
from cluster.export.whole_rows import CHOSEN, SINGLY, exported_columns, whole_rows
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import BEST, ONLY, Strategy
from cluster.rows import ROW_SCHEMA, asks_no_count
from numina.errors import OutputError

# What decides about a clip, of its row and of its verdict: all whole ones of a million clips are gigabytes.
NEEDED = ("key", "chain", "attempt", "strength", "strategy", "id", "sample", "prompt", "original_prompt", "targets")
DECIDING = ("key", "count_accuracy", "problem")
GROUP = 10_000  # rows that are Python's at a time

_NEEDED = pa.schema([ROW_SCHEMA.field(name) for name in NEEDED])


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides which clips are exported: fixed when an export begins."""

    judge: str | None  # whose verdicts count; None: no verdict is looked at
    accept: float  # CountAcc from which a clip is accepted


def rule_of(store: Store, config: ExportConfig) -> Rule:
    """The rule of an export that begins: the judge that is asked for, else the verified job's, else the only one.

    Raises OutputError where it takes a judge and there is none, or several.
    """
    judges, of_job = store.judges(), verifying(store)
    known = ", ".join(judges) or "none; run `numina evaluate` first"
    if config.judge is not None and config.judge not in (*judges, of_job):
        raise OutputError(f"judge {config.judge!r} gave no verdicts in output {store.root!r}; there are {known}")
    judge = config.judge or of_job or (judges[0] if len(judges) == 1 else None)
    if judge is None and config.only != "all" and not _asks_nothing(store):
        raise OutputError(f"--only {config.only} needs a judge; give --judge, one of {known}")
    return Rule(judge=judge, accept=Acceptance.recorded(store).accept)


def _asks_nothing(store: Store) -> bool:
    """Whether an output has rows, and none of them asks for a count."""
    rows = union(ROW_SCHEMA, store.row_files.tables(["key", "targets"]))
    return len(rows) > 0 and bool(pc.all(asks_no_count(rows)).as_py())


def wanted_strategies(store: Store, bases: Iterable[str], name: str | None) -> list[Strategy]:
    """The strategies of an output whose rows name these, or the one of this name. Raises OutputError if there is
    none."""
    made = strategies_of(store, [{"strategy": base} for base in bases])
    found = [own for own in made if name in (None, own.name)]
    if name is not None and not found:
        names = ", ".join(own.name for own in made)
        raise OutputError(f"strategy {name!r} isn't in output {store.root!r}; choose from {names}")
    return found


def verifying(store: Store) -> str | None:
    """The judge of the output's latest verified run."""
    asked: list[str] = [run["info"]["verify"]["judge"] for run in store.runs() if "verify" in run["info"]]
    return asked[-1] if asked else None


class Arrivals:
    """The clips of an output as they become ready. `index` has the exported ones, of `shards.INDEX`'s columns."""

    def __init__(self, store: Store, config: ExportConfig, rule: Rule, index: pa.Table) -> None:
        self._store, self._config, self._rule = store, config, rule
        self._exported = dict(zip(*(index[name].to_pylist() for name in ("key", "chain")), strict=True))
        kept = zip(index["chain"].to_pylist(), index["strategies"].to_pylist(), strict=True)
        self._taken = {(name, sample) for sample, names in kept for name in names}  # one clip of a sample each
        self._asked: list[Strategy] = []  # by the output's runs
        self.renamed: dict[str, str] = {}  # columns of the prompt set that have another name in the export
        self._forget()

    def _forget(self) -> None:
        bases: dict[str, set[str]] = {}
        for strategy in self._asked:
            bases.setdefault(strategy.base, set()).add(strategy.name)
        wanting = {name: names for names in bases.values() for name in names}  # with those of the same samples
        done = {
            sample for name, sample in self._taken if all((own, sample) in self._taken for own in wanting.get(name, ()))
        }
        self._seen = {key for key, sample in self._exported.items() if sample in done}
        self._segments = set[str]()
        self._waiting: list[pa.Table] = []  # rows of samples that aren't settled
        self._verdicts: dict[str, dict[str, Row]] = {}  # by judge and key, of waiting rows

    def look(self, *, final: bool) -> Iterator[pa.Table]:
        """The clips that became ready since the last look, with VERDICT's columns, some at a time, in the order of
        their ids. With `final` nothing more will be made: every sample is taken as it is. Take all of them: they are
        told once."""
        asked = strategies_of(self._store)
        if asked != self._asked:  # another run asks for others: they may keep clips that were passed over
            self._asked = asked
            self._forget()
        self._waiting += self._new_tables()
        if not self._waiting:
            return
        rows = pa.concat_tables(map(_narrow, self._waiting))
        settling = self._settling(rows)
        waits, chosen = np.ones(len(rows), bool), [CHOSEN.empty_table()]
        for places in _by_samples(rows):
            group = rows.take(pa.array(places)).to_pylist()
            self._read_verdicts(settling, group)
            settled = self._settled(settling, group, final)
            waits[places] = [_chain(row) not in settled for row in group]
            chosen.append(self._chosen(settled.values()))
        read, ends = [table for table in self._waiting if _is_whole(table)], np.cumsum(list(map(len, self._waiting)))
        parts = zip(self._waiting, np.split(waits, ends[:-1]), strict=True)
        self._waiting = [table.filter(pa.array(own)) for table, own in parts if own.any()]
        known = settling.verdicts if len(rows) <= SINGLY else {}
        yield from self._finished(pa.concat_tables(chosen).combine_chunks(), read, known)
        left = {key for table in self._waiting for key in table["key"].to_pylist()}
        for judge, verdicts in self._verdicts.items():
            self._verdicts[judge] = {key: verdict for key, verdict in verdicts.items() if key in left}

    def again(self, index: pa.Table) -> pa.Table:
        """The rows of clips that are exported already, in the order of their index: for a shard that was damaged."""
        keys = index["key"].to_pylist()
        narrow = pa.concat_tables(map(_narrow, whole_rows(self._store, keys)))
        settling, rows = self._settling(narrow), narrow.to_pylist()
        self._read_verdicts(settling, rows)
        accepted = dict[str, bool | None]()
        for row in rows:
            strategy = Strategy(name="", base=row["strategy"])
            found = outcomes(strategy, [{**row, **_FIRST}], settling.verdicts, settling.acceptance)
            accepted[row["key"]] = found[0].accepted
        given = [index["key"], index["strategies"], pa.array([accepted.get(key) for key in keys], pa.bool_())]
        chosen = pa.Table.from_arrays(given, schema=CHOSEN).combine_chunks()
        made = pa.concat_tables(self._finished(chosen, (), {}), promote_options="permissive")
        return made.take(pc.index_in(index["key"], made["key"].combine_chunks()).drop_null())

    def _finished(self, chosen: pa.Table, read: Sequence[pa.Table], known: Mapping[str, Row]) -> Iterator[pa.Table]:
        """The whole rows of these clips, with VERDICT's columns."""
        for rows in whole_rows(self._store, chosen["key"].to_pylist(), read):
            made, names = exported_columns(self._store, self._rule.judge, rows, chosen, known)
            self.renamed |= names
            if len(made):
                yield made

    # --- rows and verdicts ---

    def _new_tables(self) -> list[pa.Table]:
        """Rows that weren't read yet; whole ones, if they are few. Commits are listed first: one is removed only when a
        segment has its row. What is removed before it is read, the next look finds elsewhere."""
        files, row_files, found = self._store.files, self._store.row_files, list[pa.Table]()
        loose = list(row_files.commits())
        with suppress(FileNotFoundError):
            for name in row_files.segments():
                if name not in self._segments:
                    found += self._unseen(read_table(files, name, NEEDED))
                    self._segments.add(name)
            new = [commit_name(key) for key in loose if key not in self._seen]
            for table in read_tables(files, new, None if len(new) <= SINGLY else NEEDED):
                found += self._unseen(table)
        return found

    def _unseen(self, table: pa.Table) -> list[pa.Table]:
        keys = table["key"].to_pylist()
        new = [key not in self._seen for key in keys]
        self._seen.update(keys)
        return [table.filter(pa.array(new))] if any(new) else []

    def _settling(self, rows: pa.Table) -> _Settling:
        """What decides about these rows now."""
        strategies = wanted_strategies(self._store, pc.unique(rows["strategy"]).to_pylist(), self._config.strategy)
        judges = {name for name in (self._rule.judge, verifying(self._store)) if name is not None}
        return _Settling(
            config=self._config,
            rule=self._rule,
            recorded=Acceptance.recorded(self._store),
            strategies=strategies,
            job_judge=verifying(self._store),
            all={judge: self._store.evaluations(judge, DECIDING) for judge in judges if len(rows) > SINGLY},
        )

    def _read_verdicts(self, settling: _Settling, rows: Sequence[Row]) -> None:
        """The verdicts that decide about these rows, as far as there are any."""
        settling.verdicts = self._verdicts_by(settling, self._rule.judge, rows)
        settling.job = self._verdicts_by(settling, settling.job_judge, rows)

    def _verdicts_by(self, settling: _Settling, judge: str | None, rows: Sequence[Row]) -> dict[str, Row]:
        if judge is None:
            return {}
        keys = [row["key"] for row in rows]
        if (table := settling.all.get(judge)) is not None:
            found = table.take(pc.index_in(pa.array(keys, pa.string()), table["key"]).drop_null())
            return {verdict["key"]: verdict for verdict in found.to_pylist()}
        known = self._verdicts.setdefault(judge, {})
        wanted = [key for key in keys if key not in known]
        with ThreadPoolExecutor(self._store.files.readers) as readers:
            read = readers.map(lambda key: self._store.evaluation(judge, key), wanted)
            known.update({verdict["key"]: verdict for verdict in read if verdict is not None})
        return known

    # --- what is settled ---

    def _settled(self, settling: _Settling, rows: Sequence[Row], final: bool) -> dict[str, list[Outcome]]:
        """By sample what its strategies keep, of the samples of which all are settled."""
        kept: dict[str, list[Outcome]] = {_chain(row): [] for row in rows}
        missing: dict[str, int] = {}
        for sample, base in {_chain(row): row["strategy"] for row in rows}.items():
            missing[sample] = sum(strategy.base == base for strategy in settling.strategies)
        for strategy in settling.strategies:
            for outcome in outcomes(strategy, rows, settling.verdicts, settling.acceptance):
                kept[_chain(outcome.kept)].append(outcome)
                missing[_chain(outcome.kept)] -= settling.is_settled(strategy, outcome)
        return {sample: own for sample, own in kept.items() if final or not missing[sample]}

    def _chosen(self, settled: Iterable[list[Outcome]]) -> pa.Table:
        """The clips that are exported now, of CHOSEN's columns."""
        only, chosen = self._config.only, dict[str, tuple[list[str], bool | None]]()
        for outcome in chain.from_iterable(settled):
            key, sample = outcome.kept["key"], (outcome.strategy, _chain(outcome.kept))
            wanted = only == "all" or outcome.accepted or (only == "judged" and outcome.accepted is not None)
            if wanted and sample not in self._taken and (key in chosen or key not in self._exported):
                chosen.setdefault(key, ([], outcome.accepted))[0].append(outcome.strategy)
                self._taken.add(sample)
                self._exported[key] = sample[1]
        columns = [list(chosen), *([own[place] for own in chosen.values()] for place in range(2))]
        return pa.Table.from_arrays([pa.array(*own) for own in zip(columns, CHOSEN.types, strict=True)], schema=CHOSEN)


@dataclass(kw_only=True)
class _Settling:
    """When nothing more is made of a sample, and all that decides about it is known."""

    config: ExportConfig
    rule: Rule
    recorded: Acceptance  # what the job decided by
    strategies: list[Strategy]  # that may keep a clip
    job_judge: str | None  # by which a verified job decides
    all: Mapping[str, pa.Table]  # all verdicts by judge, of DECIDING's columns: where there are many rows
    verdicts: Mapping[str, Row] = field(default_factory=dict)  # of the export's judge, on the rows that are looked at
    job: Mapping[str, Row] = field(default_factory=dict)  # of the job's judge

    @property
    def acceptance(self) -> Acceptance:
        return Acceptance(accept=self.rule.accept)

    def is_settled(self, strategy: Strategy, outcome: Outcome) -> bool:
        """Whether what a strategy keeps of a sample stays what it keeps."""
        if outcome.plain:
            return True
        judged = all(row["key"] in self.verdicts for row in outcome.rows)
        if strategy.select == ONLY:
            return judged or self.config.only == "all"
        if self.rule.judge is not None and not judged:
            return False
        made = len(outcome.rows) == len(strategy.strengths)
        if strategy.select == BEST:
            return made
        scores = [self.job[row["key"]]["count_accuracy"] for row in outcome.rows if row["key"] in self.job]
        return bool(outcome.accepted) or self.recorded.first_accepted(scores) is not None or made


_FIRST = {"attempt": 0, "strength": 1.0}


def _chain(row: Row) -> str:
    """What all attempts of a sample have in common."""
    return str(row["chain"] or row["key"])


def _by_samples(rows: pa.Table) -> Iterator[np.ndarray]:
    """The places of GROUP rows at a time, about, and of whole samples."""
    samples = pc.if_else(pc.greater(pc.binary_length(rows["chain"]).fill_null(0), 0), rows["chain"], rows["key"])
    codes = samples.combine_chunks().dictionary_encode().indices.to_numpy()  # samples in the order of their first rows
    order = np.argsort(codes, kind="stable")
    begins = np.flatnonzero(np.diff(codes[order], prepend=-1))
    places = np.searchsorted(begins, np.arange(0, len(order), GROUP))
    yield from np.split(order, np.unique(begins[places[places < len(begins)]])[1:])


def _narrow(table: pa.Table) -> pa.Table:
    """NEEDED alone; costs, which decide nothing, are 0."""
    narrow = union(_NEEDED, [table.select([name for name in NEEDED if name in table.column_names])])
    return narrow.append_column("gpu_seconds", pa.array(np.zeros(len(narrow))))


def _is_whole(table: pa.Table) -> bool:
    return "file_name" in table.column_names
