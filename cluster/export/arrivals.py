"""What an output has for a growing export: clips of which nothing more is made, each told once.

    committed rows ─► samples ─► every strategy that may keep one of a sample's clips is settled ─► its clips

A sample waits until its last attempt is made and judged, so that no later clip takes the place of one that is exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import commit_name, read_table, read_tables, union
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import Outcome, Row, outcomes, strategies_of
from cluster.export.columns import renamed
from cluster.export.config import ExportConfig
from cluster.export.selection import VERDICT
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import BEST, ONLY, Strategy
from cluster.rows import ROW_SCHEMA, asks_no_count
from numina.errors import OutputError

# What outcomes need of a row: whole rows would be gigabytes of Python objects.
NEEDED = (
    *("key", "chain", "attempt", "strength", "strategy", "id", "sample", "prompt", "original_prompt", "targets"),
    *("gpu_seconds", "rank_seconds", "timings", "ulysses", "ring", "cfg"),
)
ANNOTATED = "annotations"  # the column that a growing export has beside VERDICT's
SINGLY = 1000  # verdicts that are looked for one by one, at most; of more, all that there are are read


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


def wanted_strategies(store: Store, rows: Sequence[Row], name: str | None) -> list[Strategy]:
    """The strategies of an output that has such rows, or the one of this name. Raises OutputError if there is none."""
    made = strategies_of(store, rows)
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

    @property
    def rows(self) -> int:
        """How many were seen."""
        return len(self._seen)

    @property
    def waiting(self) -> int:
        """Of them those of samples that aren't settled."""
        return sum(map(len, self._waiting))

    def look(self, *, final: bool) -> pa.Table | None:
        """The clips that became ready since the last look, with VERDICT's columns, in the order of their ids; None if
        there are none. With `final` nothing more will be made: every sample is taken as it is."""
        asked = strategies_of(self._store)
        if asked != self._asked:  # another run asks for others: they may keep clips that were passed over
            self._asked = asked
            self._forget()
        self._waiting += self._new_tables()
        if not self._waiting:
            return None
        table = union(ROW_SCHEMA, self._waiting)
        rows = table.select(NEEDED).to_pylist()
        verdicts = self._read_verdicts(self._rule.judge, [row["key"] for row in rows])
        settled = self._settled(rows, verdicts, final)
        chosen = self._chosen(settled.values())
        found = self.table(table, chosen, verdicts) if chosen else None
        done = [_chain(row) in settled for row in rows]
        self._waiting = [rest] if len(rest := table.filter(pa.array([not own for own in done]))) else []
        left = set(rest["key"].to_pylist())
        for judge, known in self._verdicts.items():
            self._verdicts[judge] = {key: verdict for key, verdict in known.items() if key in left}
        return found

    def again(self, index: pa.Table) -> pa.Table:
        """The rows of clips that are exported already, in the order of their index: for a shard that was damaged."""
        rows, keys = self._store.rows(), index["key"].to_pylist()
        table = rows.take(pc.index_in(index["key"], rows["key"]).drop_null())
        verdicts = self._read_verdicts(self._rule.judge, keys)
        strategies = dict(zip(keys, index["strategies"].to_pylist(), strict=True))
        acceptance, chosen = Acceptance(accept=self._rule.accept), dict[str, tuple[list[str], bool | None]]()
        for row in table.select(NEEDED).to_pylist():
            found = outcomes(Strategy(name="", base=row["strategy"]), [{**row, **_FIRST}], verdicts, acceptance)
            chosen[row["key"]] = strategies[row["key"]], found[0].accepted
        made = self.table(table, chosen, verdicts)
        return made.take(pc.index_in(index["key"], made["key"]).drop_null())

    def table(
        self, rows: pa.Table, chosen: Mapping[str, tuple[list[str], bool | None]], verdicts: Mapping[str, Row]
    ) -> pa.Table:
        """The rows of these keys, sorted by id, prompt, sample and key, with VERDICT's columns. `chosen` has by key the
        strategies that keep the clip, and whether it is accepted."""
        names = [name for name in rows.column_names if name not in ROW_SCHEMA.names]
        self.renamed = renamed(names, [*ROW_SCHEMA.names, *VERDICT.names, ANNOTATED])
        rows = rows.filter(pc.is_in(rows["key"], pa.array(list(chosen), pa.string())))
        rows = rows.sort_by([(name, "ascending") for name in ("id", "prompt", "sample", "key")])
        rows = rows.rename_columns([self.renamed.get(name, name) for name in rows.column_names])
        added = []
        for key in rows["key"].to_pylist():
            strategies, accepted = chosen[key]
            verdict = verdicts.get(key, {})
            own = {name: verdict.get(name) for name in VERDICT.names if name in verdict}
            judge = self._rule.judge if verdict else None
            added.append(own | {"strategies": strategies, "accepted": accepted, "judge": judge})
        columns = pa.Table.from_pylist(added, schema=VERDICT)
        for name in VERDICT.names:
            rows = rows.append_column(VERDICT.field(name), columns[name])
        return rows.combine_chunks()

    # --- rows and verdicts ---

    def _new_tables(self) -> list[pa.Table]:
        """Rows that weren't read yet. Commits are listed first: one is removed only when a segment has its row. What
        is removed before it is read, the next look finds elsewhere."""
        files, row_files, found = self._store.files, self._store.row_files, list[pa.Table]()
        loose = list(row_files.commits())
        with suppress(FileNotFoundError):
            for name in row_files.segments():
                if name not in self._segments:
                    found += self._unseen(read_table(files, name))
                    self._segments.add(name)
            for table in read_tables(files, [commit_name(key) for key in loose if key not in self._seen]):
                found += self._unseen(table)
        return found

    def _unseen(self, table: pa.Table) -> list[pa.Table]:
        keys = table["key"].to_pylist()
        new = [key not in self._seen for key in keys]
        self._seen.update(keys)
        return [table.filter(pa.array(new))] if any(new) else []

    def _read_verdicts(self, judge: str | None, keys: Sequence[str]) -> dict[str, Row]:
        """A judge's verdicts on these keys, as far as there are any; each is read once."""
        if judge is None:
            return {}
        known = self._verdicts.setdefault(judge, {})
        wanted = [key for key in keys if key not in known]
        if len(wanted) > SINGLY:
            found = self._store.evaluations(judge)
            found = found.filter(pc.is_in(found["key"], pa.array(wanted, pa.string())))
            known.update({verdict["key"]: verdict for verdict in found.to_pylist()})
        else:
            with ThreadPoolExecutor(self._store.files.readers) as readers:
                read = readers.map(lambda key: self._store.evaluation(judge, key), wanted)
                known.update({verdict["key"]: verdict for verdict in read if verdict is not None})
        return known

    # --- what is settled ---

    def _settled(self, rows: Sequence[Row], verdicts: Mapping[str, Row], final: bool) -> dict[str, list[Outcome]]:
        """By sample what its strategies keep, of the samples of which all are settled."""
        strategies = wanted_strategies(self._store, rows, self._config.strategy)
        settling = _Settling(self._config, self._rule, Acceptance.recorded(self._store), verdicts)
        if (judge := verifying(self._store)) is not None:
            settling.job = self._read_verdicts(judge, [row["key"] for row in rows])
        kept: dict[str, list[Outcome]] = {_chain(row): [] for row in rows}
        missing: dict[str, int] = {}
        for sample, base in {_chain(row): row["strategy"] for row in rows}.items():
            missing[sample] = sum(strategy.base == base for strategy in strategies)
        for strategy in strategies:
            for outcome in outcomes(strategy, rows, verdicts, settling.acceptance):
                kept[_chain(outcome.kept)].append(outcome)
                missing[_chain(outcome.kept)] -= settling.is_settled(strategy, outcome)
        return {sample: own for sample, own in kept.items() if final or not missing[sample]}

    def _chosen(self, settled: Iterable[list[Outcome]]) -> dict[str, tuple[list[str], bool | None]]:
        """By the key of a clip that is exported now the strategies that keep it, and whether it is accepted."""
        only, chosen = self._config.only, dict[str, tuple[list[str], bool | None]]()
        for outcome in chain.from_iterable(settled):
            key, sample = outcome.kept["key"], (outcome.strategy, _chain(outcome.kept))
            wanted = only == "all" or outcome.accepted or (only == "judged" and outcome.accepted is not None)
            if wanted and sample not in self._taken and (key in chosen or key not in self._exported):
                chosen.setdefault(key, ([], outcome.accepted))[0].append(outcome.strategy)
                self._taken.add(sample)
                self._exported[key] = sample[1]
        return chosen


@dataclass
class _Settling:
    """When nothing more is made of a sample, and all that decides about it is known."""

    config: ExportConfig
    rule: Rule
    recorded: Acceptance  # what the job decided by
    verdicts: Mapping[str, Row]  # of the export's judge
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
