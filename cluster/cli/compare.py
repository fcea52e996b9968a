"""`numina compare`: several strategies or settings, run and judged by one command."""

from typing import Annotated

import typer

from cluster.cli.options import FAILED, STOPPED, Workers
from cluster.cli.summaries import show_strategies
from cluster.cli.terminal import amount, bar, job_progress, say
from cluster.observability.logs import set_up


def compare(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")
    ] = "comparison",
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides key=value of the job.")] = None,
    clip: Annotated[
        str | None, typer.Option(help="A folder with CLIP's weights; fills the columns TC and CLIP.")
    ] = None,
    workers: Workers = 1,
) -> None:
    """Run several strategies or settings, judge them, and print one table; resumes like `run`.

    --config comparison compares strategies; --config ablation compares the method's settings one by one. The judge is
    the job's verify.judge with its `judge` settings. Temporal consistency (TC) and CLIP score need --clip.
    """
    from cluster.dataset.store import Store
    from cluster.evaluation.evaluate import evaluate as judge_all
    from cluster.job.begun import as_begun
    from cluster.job.config import load_job
    from cluster.job.judge import judge_config
    from cluster.job.pinning import pinned_judge
    from cluster.job.prepared import prepare
    from cluster.runtime.run import run_job
    from pipelines.judges import inspect_judge

    overrides = overrides or []
    job = load_job(config, overrides)
    set_up(job.cluster.log_format)
    job = as_begun(job, config, overrides)
    known = Store(job.output, single_writer=True).hub_commits()
    judges, prepared = [pinned_judge(judge_config(job.verify.judge, job.judge), known)], prepare(job)
    if clip is not None:
        judges.append(judge_config("clip", {"path": clip}))
    for judge in judges:
        inspect_judge(judge)
    with job_progress() as report:
        outcome = run_job(prepared, report)
    if outcome.stopped:
        say(f"stopped with {amount(outcome.left, 'videos')} left; the same command continues")
        raise typer.Exit(STOPPED)
    store = Store.reader(job.output)
    for judge in judges:
        with bar(f"judging by {judge.name}") as judged:
            judge_all(store, judge, judged, workers=workers)
    show_strategies(store)
    if outcome.failed:
        say(f"{outcome.failed} failed, see {store.root}/failures; add retry_failed=true to try these clips again")
        raise typer.Exit(FAILED)
