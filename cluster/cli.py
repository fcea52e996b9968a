"""`numina`: a verb per stage of a dataset's life. Exit status: 0 done, 1 something failed, 2 wrong input."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
def plan(config: Config = None, overrides: Overrides = None) -> None:
    """What a job takes of a cluster, without touching a GPU."""
    from cluster.driver import prepare
    from cluster.job import load_job
    from cluster.planner import estimate

    prepared = prepare(load_job(config, overrides or []))
    size = estimate(prepared)
    table = Table(show_header=False, box=None)
    table.add_row("model", f"{prepared.model.name} ({prepared.model.depth} blocks, {prepared.model.heads} heads)")
    table.add_row("device", f"{prepared.device}, {prepared.dtype}")
    table.add_row("gangs", f"{size.gangs} × {size.ranks_per_gang} ranks (Ulysses), engine {size.engine}")
    table.add_row("tokens", f"{size.tokens} per clip, {size.tokens // size.ranks_per_gang} per rank")
    table.add_row("weights", f"{size.weights_gib:.2f} GiB of transformer on every rank (as stored)")
    table.add_row("videos", str(size.videos))
    if size.seconds_per_video is None:
        table.add_row("time", "not measured for this model and shape; try limit=2 first")
    else:
        table.add_row("time", f"{size.seconds_per_video:.0f} s of denoising per video on {size.measured_on}, at most")
        table.add_row("total", f"{size.hours:.1f} h on {size.gangs} gangs")
    console.print(table)


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
