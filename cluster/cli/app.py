"""Make count-accurate text-to-video datasets on many GPUs.

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

from cluster.cli.config import config
from cluster.cli.evaluate import compare, evaluate
from cluster.cli.export import export
from cluster.cli.prompts import prompts_app
from cluster.cli.terminal import console, duration, job_progress, rate, say, step_progress, tell
from cluster.observability import logs
from numina.errors import InputError, NuminaError, OutputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
PREPARE, RUN, LOOK, USE = "Prepare", "Run", "Look at results", "Export and clean up"  # panels of `numina --help`

models_app = typer.Typer(no_args_is_help=True, help="Check model checkpoints.")
testbed_app = typer.Typer(no_args_is_help=True, help="Retrain the embedded counting model.")
app.add_typer(prompts_app, name="prompts", rich_help_panel=PREPARE)
app.add_typer(models_app, name="models", rich_help_panel=PREPARE)
app.add_typer(testbed_app, name="testbed", rich_help_panel=USE)

app.command(rich_help_panel=PREPARE)(config)

FAILED, WRONG_INPUT, STOPPED = 1, 2, 3  # exit status

Config = Annotated[
    str | None, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one such as demo.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides key=value, e.g. parallel.ulysses=4 limit=8")]


CANDIDATES_SHOWN = 5  # by `plan`

# The verbs import what they need when they are called: `numina --help` shouldn't wait for torch and Ray.


@app.command(rich_help_panel=RUN)
def run(config: Config = None, overrides: Overrides = None) -> None:
    """Run a job, or resume it: the same command again does only the work that is left."""
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
        tell(
            f"{outcome.accepted} samples accepted now, {outcome.rejected} rejected: none of their attempts was accepted"
        )
    if outcome.failed:
        tell(f"failures are recorded in {output}/failures; add retry_failed=true to try these clips again")
    if outcome.stopped:
        tell(f"stopped with {outcome.left} videos left; the same command continues")
        raise typer.Exit(STOPPED)
    if outcome.failed:
        raise typer.Exit(FAILED)


@app.command(rich_help_panel=RUN)
def generate(
    prompt: str,
    config: Annotated[
        str, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")
    ] = "testbed",
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 file to write.")] = Path("video.mp4"),
    seed: Annotated[int, typer.Option(help="The seed of the noise.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Generate without NUMINA.")] = False,
    overrides: Overrides = None,
) -> None:
    """Generate one mp4 from one prompt, without Ray."""
    from cluster.api import generate as generate_clip

    with step_progress() as progress:
        clip = generate_clip(
            prompt, config=config, seed=seed, overrides=overrides or [], plain=plain, progress=progress
        )
    clip.save(output)
    say(f"{output}: {len(clip.video)} frames, {clip.summary()}")


@app.command(rich_help_panel=PREPARE)
def plan(
    config: Config = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs to plan for; without it, the job is shown as configured.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The kind of GPU: a file in configs/measured/, by name or by path.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes; each has the same number of GPUs.")] = 1,
    objective: Annotated[
        Literal["throughput", "latency"], typer.Option(help="Most clips per hour, or the shortest time for one clip.")
    ] = "throughput",
) -> None:
    """Show what a job needs, and the best way to run it on a cluster; needs no GPU.

    With --gpus, values of parallel.* and memory.* on the command line are kept; those in the job's YAML are not.
    """
    from cluster.cli.tables import candidate_table, facts_table, print_configured
    from cluster.job.config import load_job
    from cluster.job.plan import prepare
    from cluster.planner import DEFAULT_GPU, Planner, load_gpu, prepare_for_gpus, reasons, wishes_of

    job, table = load_job(config, overrides or []), load_gpu(gpu or DEFAULT_GPU)
    if gpus is None:
        if nodes != 1 or objective != "throughput":
            raise InputError("--nodes and --objective need the number of GPUs; add e.g. --gpus 8")
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


@app.command(rich_help_panel=LOOK)
def status(output: str) -> None:
    """Show how much of an output is done; reads storage only."""
    from cluster.dataset.store import Store
    from cluster.observability.status import status_of

    now = status_of(Store(output, single_writer=True))
    left = "" if now.left is None else f", {now.left} left of {now.asked}"
    say(f"{now.done} done, {now.failed} failed{left}")
    if now.rate_per_hour:
        eta = f", {duration(now.eta_seconds)} to go" if now.eta_seconds else ""
        say(f"{rate(now.rate_per_hour)}{eta}")
    if now.last_commit:
        ago = (datetime.now(UTC) - now.last_commit).total_seconds()
        say(f"last commit {duration(max(0, ago))} ago")  # storage has a clock of its own


@app.command(rich_help_panel=LOOK)
def report(
    output: str,
    to: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page to write, NAME.html; its data goes to NAME/. Default: in the output."
        ),
    ] = None,
) -> None:
    """Write a static HTML page of all clips: videos, layouts, counts, search, filters and plots."""
    from cluster.report import build_report

    page = build_report(output, to)
    say(f"report: {to or Path(output) / page.name}")


@app.command(rich_help_panel=LOOK)
def trace(
    output: str,
    to: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")] = Path("trace.json"),
    key: Annotated[str | None, typer.Option(help="Trace only the clip with this key.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Trace at most this many clips, the latest ones.")] = 1000,
) -> None:
    """Write when and where each clip's stages ran, as a file for https://ui.perfetto.dev."""
    import json

    from cluster.dataset.store import Store
    from cluster.observability.trace import latest_rows
    from cluster.observability.trace import trace as trace_of

    traced = trace_of(latest_rows(Store(output, single_writer=True), last, key))
    to.write_text(json.dumps(traced, ensure_ascii=False))
    say(f"{to}: {traced['otherData']['clips']} clips; open it in https://ui.perfetto.dev")


@app.command(rich_help_panel=USE)
def gc(
    output: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
) -> None:
    """Remove files that no row needs, and merge small files. Run it only when no job uses the output."""
    from cluster.cli.tables import garbage_table
    from cluster.dataset.garbage import collect_garbage
    from cluster.dataset.store import Store

    store = Store(output, single_writer=True)
    if store.run_config() is None:
        raise OutputError(f"{store.root!r} has no run.json; give an output of `numina run`")
    collected = collect_garbage(store, dry_run=dry_run)
    console.print(garbage_table(collected, "to remove" if dry_run else "removed"))
    if collected.segments_written:
        say(f"{collected.segments_written} segments written")


app.command(rich_help_panel=RUN)(compare)
app.command(rich_help_panel=LOOK)(evaluate)
app.command(rich_help_panel=USE)(export)


@models_app.command("check")
def models_check(
    path: Annotated[str, typer.Argument(help="A folder in diffusers' layout, a hub id OWNER/NAME, or testbed.")],
    revision: Annotated[str | None, typer.Option(help="The commit of a hub id, 40 hex digits.")] = None,
) -> None:
    """Show what a checkpoint holds and how it would run, or all that is wrong with it; downloads a hub id."""
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
    seed: Annotated[int, typer.Option(help="The seed of the initial weights and the training scenes.")] = 0,  # noqa: PT028
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
