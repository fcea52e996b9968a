"""`numina evaluate` and `numina compare`: judges' verdicts, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.terminal import bar, console, job_progress, say
from cluster.observability import logs

if TYPE_CHECKING:
    from cluster.dataset.store import Store

Overrides = Annotated[list[str] | None, typer.Argument(help="The judge's settings, e.g. path=/models/dino every=4")]
STRATEGIES_SHOWN = 3  # beside each other, prompt by prompt
Workers = Annotated[int, typer.Option(min=1, help="Judges at work; more than one run on Ray.")]


def evaluate(
    output: str,
    overrides: Overrides = None,
    judge: Annotated[
        str, typer.Option(help="A judge of configs/judge/: counter, grounding-dino, published, owlv2, clip; or a file.")
    ] = "counter",
    workers: Workers = 1,
    gpus: Annotated[float, typer.Option(help="Share of a GPU for each judge on Ray.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to judge on: auto, HOST:PORT.")] = None,
    against: Annotated[str | None, typer.Option(help="Another output of the same prompts, judged alike.")] = None,
) -> None:
    """Judge what the videos of a dataset show; print asked, identified and detected counts, and each strategy's sums.

    Verdicts go to the output's evaluations/, and what they come to, to evaluations/summary.json and .parquet.
    """
    from cluster.dataset.store import Store
    from cluster.evaluation.evaluate import evaluate as judge_all
    from cluster.job.config import dotlist
    from cluster.job.judge import judge_config

    config = judge_config(judge, dotlist([override.removeprefix("judge.") for override in overrides or []]))
    store = Store.reader(output)
    with bar("judging") as judged:
        verdicts = judge_all(store, config, judged, workers=workers, gpus=gpus, address=address)
    if against is not None:
        show_difference(store, Store.reader(against), config.name)
        return
    show_counts(store, config.name)
    for key, verdict in verdicts.items():
        if verdict["problem"]:
            say(f"scores 0: {key}: {verdict['problem']}")


def compare(
    config: Annotated[str, typer.Option("--config", "-c", help="A job's YAML file, or a shipped one.")] = "comparison",
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides of the job")] = None,
    clip: Annotated[str | None, typer.Option(help="A folder with CLIP's weights, for the columns TC and CLIP.")] = None,
    workers: Workers = 1,
) -> None:
    """Run a grid of strategies or of settings, judge it, and print its table: one command, resumed like any job.

    `--config comparison` compares strategies, `--config ablation` the method's settings one by one. The judge is the
    job's verify.judge with the job's `judge` settings; temporal consistency and CLIP score need --clip.
    """
    from cluster.dataset.store import Store
    from cluster.evaluation.evaluate import evaluate as judge_all
    from cluster.job.config import load_job
    from cluster.job.judge import judge_config
    from cluster.runtime.driver import prepare, run_job
    from pipelines.judges import inspect_judge

    job = load_job(config, overrides or [])
    logs.set_up(job.cluster.log_format)
    judges, plan = [judge_config(job.verify.judge, job.judge)], prepare(job)
    if clip is not None:
        judges.append(judge_config("clip", {"path": clip}))
    for judge in judges:
        inspect_judge(judge)
    with job_progress() as report:
        outcome = run_job(plan, report)
    if outcome.stopped:
        say(f"stopped with {outcome.left} left: the same command goes on")
        raise typer.Exit(3)
    store = Store.reader(job.output)
    for judge in judges:
        with bar(f"judging by {judge.name}") as judged:
            judge_all(store, judge, judged, workers=workers)
    show_strategies(store)
    if outcome.failed:
        say(f"{outcome.failed} failed, see {store.root}/failures; retry_failed=true tries them again")
        raise typer.Exit(1)


def show_counts(store: Store, judge: str) -> None:
    """Prints counts prompt by prompt, and each strategy's sums; keeps these in the output."""
    from cluster.cli.tables import count_table
    from cluster.evaluation.outcomes import outcomes, strategies_of
    from cluster.job.acceptance import Acceptance

    rows = store.rows().to_pylist()
    verdicts = {row["key"]: row for row in store.evaluations(judge).to_pylist()}
    if any(row["count_accuracy"] is not None for row in verdicts.values()):
        acceptance = Acceptance.recorded(store)
        made = {own.name: outcomes(own, rows, verdicts, acceptance) for own in strategies_of(store, rows)}
        console.print(
            count_table(
                {name: some for name, some in made.items() if some},
                verdicts,
                f"{store.root}: objects detected by {judge}",
            )
        )
    show_strategies(store)


def show_strategies(store: Store) -> None:
    """Prints each strategy's sums by every judge that counts; keeps them in the output."""
    from cluster.cli.tables import difference_text, strategy_table
    from cluster.evaluation.summary import summarize, write_summary

    summary = summarize(store)
    for judge in summary.judges:
        console.print(strategy_table(judge, summary.cost_unit))
        for own in judge.strategies:
            for other, difference in own.against.items():
                say(f"CountAcc {own.strategy} − {other}: {difference_text(difference)}")
    for pair, share in summary.agreement.items():
        say(f"agreement of {pair}: {share:.3f} of all counts per frame and noun")
    say(f"summary: {store.root}/{write_summary(store, summary)[0]}")


def show_difference(one: Store, other: Store, judge: str) -> None:
    """Prints one output's CountAcc less another's, strategy by strategy, prompt by prompt."""
    from cluster.cli.tables import difference_text
    from cluster.evaluation.summary import compare_outputs

    for name, note, prompts, difference in compare_outputs(one, other, judge):
        left_out = f"; {note}" if note else ""
        say(f"CountAcc of {name}: {difference_text(difference)} on {prompts} prompts in common{left_out}")
