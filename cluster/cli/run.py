"""`numina run`: a job, or what is left of it."""

import typer

from cluster.cli.options import FAILED, STOPPED, Config, Overrides
from cluster.cli.terminal import amount, job_progress, tell
from cluster.observability.logs import redact, set_up


def run(config: Config = None, overrides: Overrides = None) -> None:
    """Run a job, or resume it: the same command again does only the work that is left."""
    from cluster.job.begun import as_begun
    from cluster.job.config import load_job
    from cluster.job.prepared import prepare
    from cluster.runtime.run import run_job

    overrides = overrides or []
    job = load_job(config, overrides)
    set_up(job.cluster.log_format)
    job = as_begun(job, config, overrides)
    prepared, output = prepare(job), redact(job.output)
    with job_progress() as report:
        outcome = run_job(prepared, report)
    idle = "nothing to do" if not outcome.left else "nothing generated now"
    now = f"{outcome.generated} generated now ({outcome.guided} guided)" if outcome.generated else idle
    tell(f"{outcome.done} of {outcome.total} videos in {output}: {now}, {outcome.failed} failed")
    if outcome.accepted or outcome.rejected:
        accepted = amount(outcome.accepted, "samples")
        tell(f"{accepted} accepted now, {outcome.rejected} rejected after their last attempt")
    if outcome.skipped:
        tell(f"{amount(outcome.skipped, 'rows')} of the prompt set skipped: {output}/REJECTED*.jsonl says why")
    if outcome.failed:
        tell(f"failures are recorded in {output}/failures; add retry_failed=true to try these clips again")
    if outcome.stopped:
        tell(f"stopped with {amount(outcome.left, 'videos')} left; the same command continues")
        raise typer.Exit(STOPPED)
    if outcome.failed:
        raise typer.Exit(FAILED)
