"""Evaluation: a judge looks at every video of a dataset; its verdicts lie beside the rows, never in them.

One judge works in this process; several, or one on another machine's GPU, are Ray actors of their own. A verdict that
is there isn't made again, so that a second command goes on where the first one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from cluster.dataset.store import Store
from cluster.evaluation.verdicts import Row, check_settings, judge_rows
from cluster.job.pinning import pinned_judge
from cluster.rows import python_rows
from numina.errors import GangError, InputError, OutputError
from pipelines.judges import Judge, JudgeConfig, load_judge

if TYPE_CHECKING:
    from cluster.dataset.store import Store

CLIPS_AT_ONCE = 8  # that a judge is given in one call: their frames share forward passes
RESTARTS = 3  # of a judge's process that died; what it was at is done again

Report = Callable[[int, int], None]


def evaluate(
    store: Store,
    config: JudgeConfig,
    report: Report = lambda done, total: None,
    *,
    workers: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Judges the rows that have no verdict yet, and returns the verdicts of all by key.

    A video that is missing or can't be read scores 0, is named in its verdict's `problem`, and is looked at again by
    the next evaluation. `workers` above 1, or an `address`, makes the judges Ray actors, with a share of a GPU each.
    Raises OutputError for an output without rows, or with verdicts of other settings under the judge's name.
    """
    rows = python_rows(store.rows())
    if not rows:
        raise OutputError(f"output {store.root!r} holds no rows to judge: give a folder that `numina run` wrote to")
    config = pinned_judge(config, store.hub_commits())
    judge = load_judge(config)
    known = {verdict["key"]: verdict for verdict in store.evaluations(config.name).to_pylist()}
    check_settings(store, judge, list(known.values()))
    todo = [row for row in rows if row["key"] not in known or known[row["key"]]["problem"]]
    report(len(rows) - len(todo), len(rows))
    batches = [todo[start : start + CLIPS_AT_ONCE] for start in range(0, len(todo), CLIPS_AT_ONCE)]
    alone = workers == 1 and address is None
    made = _here(store, judge, batches) if alone else _on_ray(store, config, batches, workers, gpus, address)
    done = len(rows) - len(todo)
    for verdicts in made:
        for verdict in verdicts:
            known[verdict["key"]] = verdict
        done += len(verdicts)
        report(done, len(rows))
    return {row["key"]: known[row["key"]] for row in rows}


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

    options = {} if address else {"num_cpus": workers + 1, "include_dashboard": False}
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
