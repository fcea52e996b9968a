"""`numina evaluate`: a judge's verdicts on an output, and their summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import Workers
from cluster.cli.summaries import show_strategies
from cluster.cli.terminal import amount, bar, console, say

if TYPE_CHECKING:
    from cluster.dataset.store import Store

Overrides = Annotated[list[str] | None, typer.Argument(help="The judge's settings, e.g. path=/models/dino every=4.")]


def evaluate(
    output: str,
    overrides: Overrides = None,
    judge: Annotated[
        str,
        typer.Option(
            help="A judge in configs/judge/ (counter, grounding-dino, published, owlv2, clip), or a YAML file."
        ),
    ] = "counter",
    workers: Workers = 1,
    gpus: Annotated[float, typer.Option(help="Share of a GPU for each judge process on Ray.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="An existing Ray cluster: auto or HOST:PORT.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another output of the same prompts, judged with the same settings.")
    ] = None,
) -> None:
    """Count the objects in a dataset's videos, and summarize the counts by strategy.

    Verdicts go to the output's evaluations/, summaries to evaluations/summary.json and summary.parquet. Missing videos
    score 0 and are listed.
    """
    from cluster.dataset.store import Store
    from cluster.evaluation.evaluate import evaluate as judge_all
    from cluster.job.config import settings_given
    from cluster.job.judge import judge_config
    from pipelines.judges.base import JudgeConfig

    changes = settings_given([override.removeprefix("judge.") for override in overrides or []], JudgeConfig)
    config = judge_config(judge, changes)
    store = Store.reader(output)
    with bar("judging") as judged:
        problems = judge_all(store, config, judged, workers=workers, gpus=gpus, address=address)
    if against is not None:
        show_difference(store, Store.reader(against), config.name)
        return
    show_counts(store, config.name)
    for key, problem in problems.items():
        say(f"scores 0: {key}: {problem}")


def show_counts(store: Store, judge: str) -> None:
    """Prints counts of the first prompts, and each strategy's sums; keeps these in the output."""
    from cluster.cli.tables import PROMPTS_SHOWN, count_table
    from cluster.evaluation.first import first_outcomes
    from cluster.evaluation.judged import read_evidence

    evidence = read_evidence(store)
    own = evidence.by(judge)
    if own is not None and own.counts:
        first = first_outcomes(store, evidence.clips, own, PROMPTS_SHOWN)
        console.print(
            count_table(first.made, first.verdicts, f"{store.root}: objects detected by {judge}", of=first.of)
        )
    show_strategies(store, evidence)


def show_difference(one: Store, other: Store, judge: str) -> None:
    """Prints one output's CountAcc less another's, strategy by strategy, prompt by prompt."""
    from cluster.cli.tables import difference_text
    from cluster.evaluation.summary import compare_outputs

    for name, note, prompts, difference in compare_outputs(one, other, judge):
        left_out = f"; {note}" if note else ""
        say(f"CountAcc of {name}: {difference_text(difference)} on {amount(prompts, 'prompts')} in common{left_out}")
