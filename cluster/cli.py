"""`numina`: a verb per stage of a dataset's life. Exit status: 0 done, 1 something failed, 2 wrong input."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from numina.errors import InputError, NuminaError

if TYPE_CHECKING:
    from cluster.driver import JobProgress
    from cluster.evaluate import Verdict
    from cluster.planner import Candidate, Planner

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
prompts_app = typer.Typer(no_args_is_help=True, help="Make and check prompt sets.")
models_app = typer.Typer(no_args_is_help=True, help="Look at checkpoints.")
testbed_app = typer.Typer(no_args_is_help=True, help="The embedded counting model.")
app.add_typer(prompts_app, name="prompts")
app.add_typer(models_app, name="models")
app.add_typer(testbed_app, name="testbed")

console = Console()
say = partial(console.print, soft_wrap=True, highlight=False)

Config = Annotated[str | None, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides, e.g. parallel.ulysses=4 limit=8")]


CANDIDATES_SHOWN = 5  # by `plan`

# The verbs import what they need when they are called: `numina --help` shouldn't wait for torch and Ray.


@app.command()
def run(config: Config = None, overrides: Overrides = None) -> None:
    """Run a job, or resume it: the same command twice does the work once."""
    from cluster.driver import prepare, run_job
    from cluster.job import load_job

    plan = prepare(load_job(config, overrides or []))
    with _job_progress() as report:
        outcome = run_job(plan, report)
    now = f"{outcome.generated} generated now ({outcome.guided} guided)" if outcome.generated else "nothing to do"
    say(f"{outcome.done} of {outcome.total} videos in {plan.job.output}: {now}, {outcome.failed} failed")
    if outcome.failed:
        say(f"failures are recorded in {plan.job.output}/failures; retry_failed=true tries them again")
        raise typer.Exit(1)


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

    with _step_progress() as progress:
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
    from cluster.job import load_job
    from cluster.plan import prepare
    from cluster.planner import DEFAULT_GPU, Planner, load_gpu, prepare_for_gpus, reasons, wishes_of

    job, table = load_job(config, overrides or []), load_gpu(gpu or DEFAULT_GPU)
    if gpus is None:
        if nodes != 1 or objective != "throughput":
            raise InputError("--nodes and --objective are about a cluster; say how large it is, e.g. --gpus 8")
        _print_configured(Planner(prepare(job), table), refuse=gpu is not None)
        return
    planner = Planner(prepare_for_gpus(job), table)
    found = planner.candidates(gpus, nodes=nodes, objective=objective, wishes=wishes_of(job, overrides or []))
    where = f"{gpus} × {table.name}, {table.memory_gib:g} GiB each, on {nodes} node{'s' if nodes > 1 else ''}"
    tokens = f"{planner.memory.tokens} per clip"
    console.print(_facts_table(planner, {"tokens": tokens, "GPUs": where, "objective": objective}))
    say()
    console.print(_candidate_table(found[:CANDIDATES_SHOWN]))
    say()
    for place, candidate in enumerate(found[:CANDIDATES_SHOWN], start=1):
        say(f"{place}: {candidate.setup.overrides(job) or 'as configured'}")
    say("\nwhy 1:")
    for reason in reasons(planner, found, gpus, objective):
        say(f"  {escape(reason)}")


@app.command()
def status(output: str) -> None:
    """How far an output is, from storage alone."""
    from cluster.store import Store

    now = Store(output, single_writer=True).status()
    left = "" if now.left is None else f", {now.left} left of {now.asked}"
    say(f"{now.done} done, {now.failed} failed{left}")
    if now.rate_per_hour:
        eta = f", {now.eta_seconds / 60:.0f} min to go" if now.eta_seconds is not None else ""
        say(f"{now.rate_per_hour:.0f} videos per hour{eta}")


@app.command()
def evaluate(
    output: str,
    judge: Annotated[str, typer.Option(help="Who counts: `counter`, the embedded model's exact counter.")] = "counter",
) -> None:
    """Count what the videos of a dataset show, and print asked, identified and detected counts."""
    from cluster.evaluate import accuracy_by_strategy
    from cluster.evaluate import evaluate as judge_all
    from cluster.store import Store
    from pipelines.judges import JUDGES

    if judge not in JUDGES:
        raise InputError(f"judge {judge!r} isn't known; choose from {', '.join(JUDGES)}")
    with _bar("judging") as bar:
        verdicts = judge_all(Store(output, single_writer=True), JUDGES[judge](), bar)
    console.print(_count_table(verdicts, f"{output}: objects detected by {judge}"))
    for strategy, accuracy in accuracy_by_strategy(verdicts).items():
        say(f"CountAcc {strategy}: {accuracy:.3f}")


@app.command()
def report(output: str) -> None:
    """Write one static page: videos beside their layouts and counts."""
    from cluster.report import build_report

    say(f"report: {Path(output) / build_report(output).name}")


@prompts_app.command("check")
def prompts_check(
    prompts: Annotated[str, typer.Argument(metavar="SET")],
    write: Annotated[str | None, typer.Option(help="Write the set with its targets filled in.")] = None,
    max_count: Annotated[int, typer.Option(help="The largest count that a target may ask for.")] = 20,
) -> None:
    """Check a prompt set, print the targets found in every row."""
    from cluster.driver import prompt_path
    from cluster.promptset import read_prompts, write_targets

    path = prompt_path(prompts)
    for row in read_prompts(path, max_count=max_count):
        targets = ", ".join(f"{target.count} {target.noun}" for target in row.targets)
        say(f"{row.id or row.index}: {targets}  [dim]{escape(row.prompt)}[/dim]")
    if write:
        say(f"{write}: {write_targets(path, write, max_count=max_count)} rows")


@prompts_app.command("make")
def prompts_make(
    output: str,
    number: Annotated[int, typer.Option("--number", "-n", help="Prompts to make.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the choice of colours, shapes and counts.")] = 0,
) -> None:
    """Make a prompt set for the embedded model: held-out combinations, balanced over nouns and counts."""
    from cluster.promptset import make_prompts
    from pipelines.testbed.world import heldout_prompts

    rows = [
        {
            "id": f"{index:05d}",
            "prompt": prompt.text,
            "targets": [{"noun": target.noun, "count": target.count} for target in prompt.targets],
        }
        for index, prompt in enumerate(heldout_prompts(number, seed))
    ]
    say(f"{output}: {make_prompts(rows, output)} prompts")


@models_app.command("check")
def models_check(path: str) -> None:
    """What a checkpoint folder holds, and what it would run as."""
    from pipelines.registry import inspect_model

    facts = inspect_model(path)
    degrees = [ranks for ranks in range(1, facts.heads + 1) if facts.heads % ranks == 0]
    say(
        f"{facts.path}: Wan text-to-video, {facts.depth} blocks, {facts.heads} heads of {facts.head_size},"
        f" {facts.transformer_bytes / 2**30:.2f} GiB transformer, revision {facts.revision};"
        f" parallel.ulysses: {', '.join(map(str, degrees))}"
    )


@testbed_app.command("train")
def testbed_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the training log.")],
    seed: Annotated[int, typer.Option(help="Of the initial weights and the world's scenes.")] = 0,  # noqa: PT028
) -> None:
    """Retrain the embedded counting model from scratch, on one GPU."""
    from pipelines.testbed.train import train

    train(output, seed=seed)


# --- what a terminal shows ---


def _print_configured(planner: "Planner", refuse: bool) -> None:
    """The job as it is; where its memory isn't there, an error or, of a GPU nobody named, a line."""
    from cluster.planner import time_reasons

    setup, size = planner.configured, planner.estimate()
    refusal = planner.refusal(setup) if planner.plan.device == "cuda" else None
    if refusal and refuse:
        raise InputError(refusal)
    memory = size.candidate.memory
    split = f"cfg {setup.cfg} × ulysses {setup.ulysses} × ring {setup.ring}"
    rows = {
        "tokens": f"{size.tokens} per clip, {-(-size.tokens // setup.sequence_ranks)} per rank",
        "gangs": f"{setup.gangs} × {setup.ranks} ranks ({split}), engine {size.candidate.engine}",
        "weights": f"{size.weights_gib:.2f} GiB of transformer",
    }
    if planner.plan.device == "cuda":
        gpu = f"{planner.gpu.memory_gib:g} of {planner.gpu.name}"
        rows["memory"] = f"{memory.peak:.1f} GiB at most on every GPU, while {memory.phase}; {gpu}"
    if size.hours is None:
        rows["time"] = "not measured for this model and shape; try limit=2 first"
    else:
        rows["total"] = f"{size.hours:.1f} h for all videos, at most"
    console.print(_facts_table(planner, rows))
    if size.hours is not None:
        for reason in time_reasons(planner, size.candidate):
            say(escape(reason))
    if refusal:
        say(escape(f"doesn't fit: {refusal}"))


def _facts_table(planner: "Planner", rows: dict[str, str]) -> Table:
    """What a job is, and some more rows."""
    plan, model, generation = planner.plan, planner.model, planner.job.generation
    table = Table(show_header=False, box=None)
    table.add_row("model", f"{model.name} ({model.depth} blocks, {model.heads} heads)")
    table.add_row("device", f"{plan.device}, {plan.dtype}")
    table.add_row("clip", f"{generation.height}×{generation.width}, {generation.num_frames} frames")
    table.add_row("videos", str(sum(1 for _ in plan.tasks())))
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def _candidate_table(candidates: Sequence["Candidate"]) -> Table:
    """Ways to run a job, best first."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns are enough
    for column in ("", "gangs", "cfg", "ulysses", "ring"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("shard", "text"):
        table.add_column(column, no_wrap=True)
    for column in ("GiB", "seconds", "clips/h"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("forward pass")
    for place, candidate in enumerate(candidates, start=1):
        setup, cost = candidate.setup, candidate.cost
        more, less = (">", "<") if cost and cost.forward.at_least else ("", "")
        table.add_row(
            *map(str, (place, setup.gangs, setup.cfg, setup.ulysses, setup.ring, setup.shard, setup.text_encoder)),
            f"{candidate.memory.peak:.1f}",
            f"{more}{cost.seconds:.0f}" if cost else "unknown",
            f"{less}{candidate.clips_per_hour:.1f}" if candidate.clips_per_hour else "unknown",
            cost.forward.source if cost else "not measured",
        )
    return table


def _count_table(verdicts: Sequence["Verdict"], title: str) -> Table:
    """Asked, identified and detected counts: a line per noun, the strategies of a prompt side by side."""
    from cluster.evaluate import shown_count

    strategies = sorted({verdict.strategy for verdict in verdicts})
    table = Table(title=title, show_lines=False)
    for column in ("prompt", "noun"):
        table.add_column(column)
    identifying = {verdict.strategy for verdict in verdicts if verdict.identified}
    for column in ("asked", *strategies):
        table.add_column(escape(column), justify="right")
        if column in identifying:
            table.add_column("identified", justify="right")
    for (prompt, _), group in groupby(verdicts, key=lambda verdict: (verdict.prompt, verdict.sample)):
        by_strategy = {verdict.strategy: verdict for verdict in group}
        first = next(iter(by_strategy.values()))
        columns = [[escape(prompt)], map(escape, first.nouns), map(str, first.asked)]
        for strategy in strategies:
            verdict = by_strategy.get(strategy)
            columns.append(_detected(verdict, shown_count))
            if strategy in identifying:
                columns.append(map(str, verdict.identified) if verdict and verdict.identified else ["–"])
        table.add_row(*map("\n".join, columns), end_section=True)
    return table


def _detected(verdict: "Verdict | None", shown_count: Callable[[Sequence[int]], str]) -> list[str]:
    """A noun's detected count per line, green where all frames have the asked one."""
    if verdict is None:
        return ["–"]
    if verdict.detected is None:
        return ["[red]no video[/red]"]
    colours = [
        "green" if set(frames) == {n} else "red" for n, frames in zip(verdict.asked, verdict.detected, strict=True)
    ]
    return [
        f"[{colour}]{shown_count(frames)}[/{colour}]" for colour, frames in zip(colours, verdict.detected, strict=True)
    ]


def _progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def _job_progress() -> Iterator[Callable[["JobProgress"], None]]:
    """A bar on a terminal; elsewhere a line whenever something changed."""
    with _progress_bar() as bar:
        task = bar.add_task("videos", total=None)
        shown = ""

        def show(now: "JobProgress") -> None:
            nonlocal shown
            gangs = "  ".join(f"{name}: {state}" for name, state in now.gangs.items())
            bar.update(task, total=now.total, completed=now.done + now.failed, description=gangs or "videos")
            line = f"{now.done}/{now.total} videos, {now.failed} failed  {gangs}"
            if not console.is_terminal and line != shown:
                say(line)
            shown = line

        yield show


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    with _progress_bar() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage of a clip."""
    with _progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield show


def main() -> None:
    """The `numina` command."""
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except NuminaError as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
