"""What verbs print as tables: what a job is and how it could run, what judges counted, what a clean-up removed."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cluster.logs import redact
from cluster.terminal import console, say
from numina.errors import InputError

if TYPE_CHECKING:
    from cluster.evaluate import Verdict
    from cluster.garbage import Collected
    from cluster.planner import Candidate, Planner


def print_configured(planner: "Planner", refuse: bool) -> None:
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
    console.print(facts_table(planner, rows))
    if size.hours is not None:
        for reason in time_reasons(planner, size.candidate):
            say(reason)
    if refusal:
        say(f"doesn't fit: {refusal}")


def facts_table(planner: "Planner", rows: dict[str, str]) -> Table:
    """What a job is, and some more rows."""
    plan, model, generation = planner.plan, planner.model, planner.job.generation
    return two_columns(
        {
            "model": f"{model.name} ({model.depth} blocks, {model.heads} heads)",
            "device": f"{plan.device}, {plan.dtype}",
            "clip": f"{generation.height}×{generation.width}, {generation.num_frames} frames",
            "videos": str(plan.asked),
            **rows,
        }
    )


def two_columns(rows: Mapping[str, str]) -> Table:
    """Names and what there is to say of each."""
    table = Table(show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def part_table(parts: Mapping[str, tuple[str, int, int]]) -> Table:
    """A checkpoint's parts: class, number of files and their bytes."""
    table = Table(box=None, header_style="")
    for column in ("part", "class"):
        table.add_column(column)
    for column in ("files", "MiB"):
        table.add_column(column, justify="right")
    for part, (name, files, size) in parts.items():
        table.add_row(part, escape(name), str(files), f"{size / 2**20:.1f}")
    return table


def candidate_table(candidates: Sequence["Candidate"]) -> Table:
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


def count_table(verdicts: Sequence["Verdict"], title: str) -> Table:
    """Asked, identified and detected counts: a line per noun, the strategies of a prompt side by side."""
    from cluster.evaluate import shown_count

    strategies = sorted({verdict.strategy for verdict in verdicts})
    table = Table(title=escape(redact(title)), show_lines=False)
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


def garbage_table(collected: "Collected", done: str) -> Table:
    """What a clean-up did to each kind of file."""
    table = Table(box=None)
    table.add_column("")
    for column in (f"files {done}", "MiB"):
        table.add_column(column, justify="right")
    for kind, files in collected.files.items():
        table.add_row(kind, str(files), f"{collected.bytes[kind] / 2**20:.1f}")
    table.add_row("in all", str(sum(collected.files.values())), f"{sum(collected.bytes.values()) / 2**20:.1f}")
    return table
