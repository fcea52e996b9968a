"""Evaluation: a judge looks at every video of a dataset; its verdicts lie beside the rows, never in them.

One judge works in this process; several, or one on another machine's GPU, are Ray actors of their own. A verdict that
is there isn't made again, so that a second command goes on where the first one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from cluster.dataset.segments import packed, split, union
from cluster.dataset.store import Store
from cluster.evaluation.verdicts import COPIED, Row, check_settings, judge_rows
from cluster.job.pinning import pinned_judge
from cluster.rows import ROW_SCHEMA, python_rows
from numina.errors import GangError, InputError, OutputError
from pipelines.judges import Judge, JudgeConfig, load_judge

if TYPE_CHECKING:
    from cluster.dataset.store import Store

CLIPS_AT_ONCE = 8  # that a judge is given in one call: their frames share forward passes
GATHER_EVERY = 1000  # verdicts of this evaluation between two gatherings into segments
GATHER_AT_END = 100  # the least that is worth a segment when it ends
RESTARTS = 3  # of a judge's process that died; what it was at is done again

# The columns of a row that a judge gets, and that its verdict repeats.
_JUDGED = ("key", "file_name", "prompt", "original_prompt", "targets", *COPIED)
_JUDGED_SCHEMA = pa.schema([ROW_SCHEMA.field(name) for name in _JUDGED])

Report = Callable[[int, int], None]


def evaluate(
    store: Store,
    config: JudgeConfig,
    report: Report = lambda done, total: None,
    *,
    workers: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
) -> dict[str, str]:
    """Judges the rows that have no verdict yet; of all rows that score 0 because their video is missing or can't be
    read, what the problem is, by key.

    Such a video is looked at again by the next evaluation. `workers` above 1, or an `address`, makes the judges Ray
    actors, with a share of a GPU each. Raises OutputError for an output without rows, or with verdicts of other
    settings under the judge's name.
    """
    config = pinned_judge(config, store.hub_commits())
    judge = load_judge(config)
    known = _known(store, judge)
    unjudged, total = list[pa.Table](), 0
    for table in store.row_files.stream(_JUDGED):
        total += len(table)
        new = [place for place, key in enumerate(split(packed([table], "key"))) if key not in known]
        unjudged.append(table.take(pa.array(new, pa.int64())))
    if not total:
        raise OutputError(f"output {store.root!r} holds no rows to judge: give a folder that `numina run` wrote to")
    todo = union(_JUDGED_SCHEMA, unjudged).sort_by("key")
    report(total - len(todo), total)
    batches = _Batches(todo)
    alone = workers == 1 and address is None
    made = _here(store, judge, batches) if alone else _on_ray(store, config, batches, workers, gpus, address)
    done, problems, loose = total - len(todo), dict[str, str](), list[str]()
    for verdicts in made:
        problems |= {verdict["key"]: verdict["problem"] for verdict in verdicts if verdict["problem"]}
        loose += [verdict["key"] for verdict in verdicts]
        done += len(verdicts)
        report(done, total)
        if len(loose) >= GATHER_EVERY:
            store.compact_evaluations(config.name, loose)
            loose = []
    store.compact_evaluations(config.name, loose, at_least=GATHER_AT_END)
    return dict(sorted(problems.items()))


def _known(store: Store, judge: Judge) -> set[bytes]:
    """Keys of the rows that were judged, and whose videos could be. Raises as `check_settings` does."""
    known = set[bytes]()
    for table in store.verdict_tables(judge.config.name, ["key", "problem", "settings"]):
        check_settings(store, judge, [{"settings": own} for own in table["settings"].unique().to_pylist()])
        known.update(split(packed([table.filter(table["problem"].is_null())], "key")))
    return known


class _Batches(Sequence[list[Row]]):
    """Rows as they are given to judges, made when they are asked for: Python's own take ten times the memory."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._rows) // CLIPS_AT_ONCE)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return python_rows(self._rows.slice(number * CLIPS_AT_ONCE, CLIPS_AT_ONCE))


def _here(store: Store, judge: Judge, batches: Sequence[Sequence[Row]]) -> Iterator[list[dict[str, Any]]]:
    for batch in batches:
        yield judge_rows(store, judge, batch)


def _on_ray(
    store: Store,
    config: JudgeConfig,
    batches: Sequence[Sequence[Row]],
    workers: int,
    gpus: float,
    address: str | None,
) -> Iterator[list[dict[str, Any]]]:
    """By actors that take the next batch when they are done with one; one whose process dies is started again."""
    if not batches:
        return
    from cluster.job.joining import joined, reachable

    options = {} if address else {"num_cpus": workers + 1}
    with joined(reachable(address or "local", "--address"), **options):
        yield from _judged(store, config, batches, workers, gpus)


def _judged(
    store: Store, config: JudgeConfig, batches: Sequence[Sequence[Row]], workers: int, gpus: float
) -> Iterator[list[dict[str, Any]]]:
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    from cluster.evaluation.verdicts import placed

    try:
        actor = ray.remote(Evaluator).options(
            num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
        )
        pool = ActorPool([actor.remote(store.place, placed(config, gpus)) for _ in range(min(workers, len(batches)))])
        yield from pool.map_unordered(lambda judging, batch: judging.judge.remote(batch), batches)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError) else error from error
    except RayActorError as error:
        raise GangError(f"judge processes died ({error}); the same command continues") from error


class Evaluator:
    """One judge of an evaluation, with a share of an output's rows at a time."""

    def __init__(self, place: str, config: JudgeConfig):
        self._store = Store.reader(place)
        self._judge = load_judge(config)

    def judge(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The verdicts on rows, kept in the output."""
        return judge_rows(self._store, self._judge, rows)
