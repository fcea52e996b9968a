"""What strategies get for the same budget: verified clips per 1,000 rank-seconds and per 100 denoising steps.

    numina compare --config comparison output=out/comparison
    python -m tests.benchmarks.strategies out/comparison

Seconds hold what else the machine did, steps don't: a plain clip's are its schedule's, a guided one's those up to t*
on top. Of all prompts, of those with a count of 4 to 6, and of those whose counts are all 4 to 6.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import accepted_from, outcomes, strategies_of
from cluster.job.config import load_job
from numina.config import MethodConfig
from numina.schedule import schedule_times

Row = Mapping[str, Any]

PARTS: dict[str, Callable[[list[int]], bool]] = {
    "all": lambda counts: True,
    "a count of 4 to 6": lambda counts: any(4 <= count <= 6 for count in counts),
    "all counts 4 to 6": lambda counts: all(4 <= count <= 6 for count in counts),
}


def steps_of(row: Row, method: MethodConfig) -> int:
    """Denoising steps that a clip took."""
    again = method.identify.capture_step(schedule_times(row["steps"])) + 1
    return int(row["steps"] + (again if row["guided"] else 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--judge", default="counter")
    parser.add_argument("--prompts", type=int, help="the first ones alone, by id")
    arguments = parser.parse_args()
    store = Store(arguments.output, single_writer=True)
    rows, method = store.rows().to_pylist(), load_job("comparison").method
    ids = sorted({row["id"] for row in rows})[: arguments.prompts]
    rows = [row for row in rows if row["id"] in ids]
    verdicts = {row["key"]: row for row in store.evaluations(arguments.judge).to_pylist()}
    for name, belongs in PARTS.items():
        some = [row for row in rows if belongs([target["count"] for target in row["targets"]])]
        print(f"\n{name}\n{'strategy':28}prompts clips accepted CountAcc per 1,000 s per 100 steps")
        for strategy in strategies_of(store, rows):
            made = outcomes(strategy, some, verdicts, accepted_from(store))
            if not made:
                continue
            accepted = sum(bool(outcome.accepted) for outcome in made)
            clips = [row for outcome in made for row in outcome.rows]
            accuracy = sum(outcome.accuracy or 0.0 for outcome in made) / len(made)
            seconds, steps = sum(outcome.cost for outcome in made), sum(steps_of(row, method) for row in clips)
            print(
                f"{strategy.name:28}{len(made):7}{len(clips):6}{accepted:9}{accuracy:9.3f}"
                f"{1000 * accepted / seconds:12.2f}{100 * accepted / steps:14.2f}"
            )


if __name__ == "__main__":
    main()
