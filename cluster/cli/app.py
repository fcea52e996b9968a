"""`numina`: a verb per stage of a dataset's life.

Exit status: 0 done, 1 something failed, 2 wrong input, 3 stopped before it was done.
"""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cluster.cli.evaluate import compare, evaluate
from cluster.cli.export import export
from cluster.cli.prompts import prompts_app
from cluster.cli.terminal import console, duration, job_progress, rate, say, step_progress, tell
from cluster.observability import logs
from numina.errors import InputError, NuminaError, OutputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
models_app = typer.Typer(no_args_is_help=True, help="Look at checkpoints.")
testbed_app = typer.Typer(no_args_is_help=True, help="The embedded counting model.")
app.add_typer(prompts_app, name="prompts")
app.add_typer(models_app, name="models")
app.add_typer(testbed_app, name="testbed")

app.command()(evaluate)
app.command()(compare)
app.command()(export)

FAILED, WRONG_INPUT, STOPPED = 1, 2, 3  # exit status

Config = Annotated[str | None, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides, e.g. parallel.ulysses=4 limit=8")]


CANDIDATES_SHOWN = 5  # by `plan`

# The verbs import what they need when they are called: `numina --help` shouldn't wait for torch and Ray.


@app.command()
def run(config: Config = None, overrides: Overrides = None) -> None:
    """Run a job, or resume it: the same command twice does the work once."""
    from cluster.job.config import load_job
    from cluster.runtime.driver import prepare, run_job

    job = load_job(config, overrides or [])
    logs.set_up(job.cluster.log_format)
    plan, output = prepare(job), logs.redact(job.output)
    with job_progress() as report:
        outcome = run_job(plan, report)
    idle = "nothing to do" if not outcome.left else "nothing generated now"
    now = f"{outcome.generated} generated now ({outcome.guided} guided)" if outcome.generated else idle
    tell(f"{outcome.done} of {outcome.total} videos in {output}: {now}, {outcome.failed} failed")
    if outcome.accepted or outcome.rejected:
        tell(f"{outcome.accepted} samples verified now, {outcome.rejected} rejected: no attempt was accepted")
    if outcome.failed:
        tell(f"failures are recorded in {output}/failures; retry_failed=true tries them again")
    if outcome.stopped:
        tell(f"stopped with {outcome.left} left: the same command goes on")
        raise typer.Exit(STOPPED)
    if outcome.failed:
        raise typer.Exit(FAILED)


@app.command()
def generate(
    prompt: str,
    config: Annotated[str, typer.Option("--config", "-c", help="A job's YAML file, or a shipped one.")] = "testbed",
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 to write.")] = Path("video.mp4"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Without NUMINA.")] = False,
    overrides: Overrides = None,
) -> None:
    """One prompt to one mp4, in this process."""
    from cluster.api import generate as generate_clip

    with step_progress() as progress:
        clip = generate_clip(
            prompt, config=config, seed=seed, overrides=overrides or [], plain=plain, progress=progress
        )
    clip.save(output)
    say(f"{output}: {len(clip.video)} frames, {clip.summary()}")


@app.command()
def plan(
    config: Config = None,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a cluster to plan for; else the job as configured.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Their kind: a table of configs/measured/, or a file of its form.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes that these GPUs are in, alike.")] = 1,
    objective: Annotated[
        Literal["throughput", "latency"], typer.Option(help="Most clips an hour, or one clip soonest.")
    ] = "throughput",
) -> None:
    """What a job takes of a cluster, and how to run it there, without touching a GPU.

    Overrides of parallel.* and memory.* are wishes that a plan for --gpus holds to; what the YAML says of them isn't.
    """
    from cluster.cli.tables import candidate_table, facts_table, print_configured
    from cluster.job.config import load_job
    from cluster.job.plan import prepare
    from cluster.planner import DEFAULT_GPU, Planner, load_gpu, prepare_for_gpus, reasons, wishes_of

    job, table = load_job(config, overrides or []), load_gpu(gpu or DEFAULT_GPU)
    if gpus is None:
        if nodes != 1 or objective != "throughput":
            raise InputError("--nodes and --objective are about a cluster; say how large it is, e.g. --gpus 8")
        print_configured(Planner(prepare(job), table), refuse=gpu is not None)
        return
    planner = Planner(prepare_for_gpus(job), table)
    found = planner.candidates(gpus, nodes=nodes, objective=objective, wishes=wishes_of(job, overrides or []))
    where = f"{gpus} × {table.name}, {table.memory_gib:g} GiB each, on {nodes} node{'s' if nodes > 1 else ''}"
    tokens = f"{planner.memory.tokens} per clip"
    console.print(facts_table(planner, {"tokens": tokens, "GPUs": where, "objective": objective}))
    say()
    console.print(candidate_table(found[:CANDIDATES_SHOWN]))
    say()
    for place, candidate in enumerate(found[:CANDIDATES_SHOWN], start=1):
        say(f"{place}: {candidate.setup.overrides(job) or 'as configured'}")
    say("\nwhy 1:")
    for reason in reasons(planner, found, gpus, objective):
        say(f"  {reason}")


@app.command()
def status(output: str) -> None:
    """How far an output is, from storage alone."""
    from cluster.dataset.store import Store
    from cluster.observability.status import status_of

    now = status_of(Store.reader(output))
    left = "" if now.left is None else f", {now.left} left of {now.asked}"
    say(f"{now.done} done, {now.failed} failed{left}")
    if now.rate_per_hour:
        eta = f", {duration(now.eta_seconds)} to go" if now.eta_seconds else ""
        say(f"{rate(now.rate_per_hour)}{eta}")
    if now.last_commit:
        ago = (datetime.now(UTC) - now.last_commit).total_seconds()
        say(f"last commit {duration(max(0, ago))} ago")  # storage has a clock of its own


@app.command()
def report(
    output: str,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Another page to write, NAME.html, with its data in NAME/.")
    ] = None,
) -> None:
    """Write a static page of all clips: videos beside their layouts and counts, search, filters and plots."""
    from cluster.report import build_report

    page = build_report(output, to)
    say(f"report: {to or Path(output) / page.name}")


@app.command()
def trace(
    output: str,
    to: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")] = Path("trace.json"),
    key: Annotated[str | None, typer.Option(help="Of one clip alone.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Of so many clips, the last committed ones.")] = 1000,
) -> None:
    """Write when and where each clip's stages ran, for https://ui.perfetto.dev."""
    import json

    from cluster.dataset.store import Store
    from cluster.observability.trace import latest_rows
    from cluster.observability.trace import trace as trace_of

    traced = trace_of(latest_rows(Store.reader(output), last, key))
    to.write_text(json.dumps(traced, ensure_ascii=False))
    say(f"{to}: {traced['otherData']['clips']} clips; open it in https://ui.perfetto.dev")


@app.command()
def gc(
    output: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
) -> None:
    """Remove what no row needs and gather small files, while no job is at work on the output."""
    from cluster.cli.tables import garbage_table
    from cluster.dataset.garbage import collect_garbage
    from cluster.dataset.store import Store

    store = Store(output, single_writer=True)
    if store.run_config() is None:
        raise OutputError(f"{store.root!r} has no run.json; give an output of `numina run`")
    collected = collect_garbage(store, dry_run=dry_run)
    console.print(garbage_table(collected, "would go" if dry_run else "removed"))
    if collected.segments_written:
        say(f"{collected.segments_written} segments written")


@models_app.command("check")
def models_check(
    path: Annotated[str, typer.Argument(help="A diffusers folder, a hub id OWNER/NAME, or testbed.")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, 40 hex digits.")] = None,
) -> None:
    """What a checkpoint holds and would run as, or all that is wrong with it; a hub's is downloaded."""
    from cluster.cli.tables import part_table, two_columns
    from cluster.planner.checkpoint import parts_of, what_it_is, would_run_as
    from pipelines.models.registry import inspect_model

    model = inspect_model(path, revision)
    console.print(two_columns(what_it_is(model)))
    say()
    console.print(part_table(parts_of(model)))
    say()
    console.print(two_columns(would_run_as(model, revision)))


@testbed_app.command("train")
def testbed_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the training log.")],
    seed: Annotated[int, typer.Option(help="Of the initial weights and the world's scenes.")] = 0,  # noqa: PT028
) -> None:
    """Retrain the embedded counting model from scratch, on one GPU."""
    from pipelines.testbed.train import train

    train(output, seed=seed)


def main() -> None:
    """The `numina` command."""
    try:
        app()
    except InputError as error:
        _fail(str(error), WRONG_INPUT)
    except NuminaError as error:
        _fail(str(error), FAILED)


def _fail(message: str, status: int) -> None:
    if logs.are_json():
        logging.getLogger("numina").error("%s", message)
    else:
        shown = f"[bold red]error:[/bold red] {escape(logs.redact(message))}"
        Console(stderr=True, emoji=False).print(shown, highlight=False, soft_wrap=True)
    sys.exit(status)
