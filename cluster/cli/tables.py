"""What verbs print as tables: what a job is and how it could run, what judges counted, what a clean-up removed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from cluster.cli.terminal import console, say
from cluster.observability.logs import redact
from numina.errors import InputError
from pipelines.models.published import UNREAD

if TYPE_CHECKING:
    from cluster.dataset.garbage import Collected
    from cluster.doctor.check import Result
    from cluster.evaluation.outcomes import Outcome
    from cluster.evaluation.summary import JudgeSummary
    from cluster.planner import Candidate, Planner
    from numina.metrics import Difference, Interval
    from pipelines.base import ModelFacts

PROMPTS_SHOWN = 20


def print_configured(planner: "Planner", refuse: bool) -> None:
    """The job as it is; where its memory isn't there, an error or, of a GPU nobody named, a line."""
    from cluster.planner import time_reasons

    setup, size = planner.configured, planner.estimate()
    refusal = planner.refusal(setup) if planner.prepared.device == "cuda" else None
    if refusal and refuse:
        raise InputError(refusal)
    memory = size.candidate.memory
    split = f"cfg {setup.cfg} × ulysses {setup.ulysses} × ring {setup.ring}"
    rows = {
        "tokens": f"{size.tokens} per clip, {-(-size.tokens // setup.sequence_ranks)} per rank",
        "gangs": f"{setup.gangs} × {setup.ranks} ranks ({split}), engine {size.candidate.engine}",
        "weights": f"{size.weights_gib:.2f} GiB of transformer",
    }
    if planner.prepared.device == "cuda":
        gpu = f"{planner.gpu.memory_gib:g} of {planner.gpu.name}"
        rows["memory"] = f"{memory.peak:.1f} GiB at most on every GPU, while {memory.phase}; {gpu}"
    if size.candidate.cost is None:
        rows["time"] = "not measured for this model and shape; try limit=2 first"
    if planner.prepared.device == "cuda" and planner.job.parallel.gangs == "auto":
        rows["gangs"] += "; with parallel.gangs=auto as many as there are GPUs for: --gpus N plans them"
    console.print(facts_table(planner, rows))
    say()
    console.print(bill_table(planner, size.candidate, setup.gangs * setup.ranks))
    if size.candidate.cost is not None:
        say()
        for reason in time_reasons(planner, size.candidate):
            say(reason)
    if refusal:
        say(f"doesn't fit: {refusal}")


def facts_table(planner: "Planner", rows: dict[str, str]) -> Table:
    """What a job is, and some more rows."""
    prepared, model, generation = planner.prepared, planner.model, planner.job.generation
    return two_columns(
        {
            "model": f"{model.name} ({model.depth} blocks, {model.heads} heads)",
            "device": f"{prepared.device}, {prepared.dtype}",
            "clip": f"{generation.height}×{generation.width}, {generation.num_frames} frames",
            **({} if planner.demand.videos is None else {"videos": str(planner.demand.videos)}),
            "checkpoint": f"{planner.disk.checkpoint / 1e9:.1f} GB on every node, {_read_where(model)}",
            **rows,
        }
    )


def _read_where(model: "ModelFacts") -> str:
    return "as published (it isn't here)" if model.revision == UNREAD else "as it is here"


def bill_table(planner: "Planner", candidate: "Candidate", gpus: int) -> Table:
    """What a clip takes, and all that are asked for, on so many GPUs: a range where some counts are right at once."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    priced = planner.demand.price is not None
    for column in ("time", "GPU-hours", "disk", *(["price"] if priced else [])):
        table.add_column(column, justify="right")
    cost, asked = candidate.cost, planner.demand.videos
    for videos in (None, *([asked] if asked else [])):
        bill = planner.bill(candidate, gpus, videos)
        time = hours = price = "unknown"
        if cost and bill.hours and bill.gpu_hours:
            time = bill.hours.shown(",.1f" if bill.hours.most >= 1 else ".2g", " h")
            if videos is None:
                time = f"{_seconds(cost.seconds_if_right, cost.seconds)} s"
            hours = bill.gpu_hours.shown(",.1f" if bill.gpu_hours.most >= 10 else ".3f")
            price = bill.price.shown(",.2f") if bill.price else price
        disk = bill.disk_gb.shown(",.1f", " GB")
        if bill.disk_gb.most < 1:
            megabytes = bill.disk_gb * 1000
            disk = megabytes.shown(".0f" if megabytes.most >= 10 else ".2g", " MB")
        table.add_row(
            "a clip of many" if videos is None else f"{videos:,} clip{'s' if videos > 1 else ''}",
            time,
            hours,
            disk,
            *([price] if priced else []),
        )
    return table


def _seconds(least: float, most: float) -> str:
    """To a second; of a few, to two digits."""
    from cluster.planner import Range

    return Range(least=least, most=most).shown(".0f" if most >= 10 else ".2g")


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
            f"{more}{_seconds(cost.seconds, cost.seconds)}" if cost else "unknown",
            f"{less}{candidate.clips_per_hour:.1f}" if candidate.clips_per_hour else "unknown",
            cost.forward.source if cost else "not measured",
        )
    return table


def count_table(
    made: Mapping[str, Sequence["Outcome"]],
    verdicts: Mapping[str, Mapping[str, Any]],
    title: str,
    of: int | None = None,
) -> Table:
    """Asked, identified and detected counts of the first prompts: a line per noun, the strategies beside each other.
    `of` is the number of all samples, where `made` holds only some."""
    table = Table(title=escape(redact(title)), show_lines=False)
    kept = {
        name: {outcome.sample: outcome.kept for outcome in some if not outcome.plain} for name, some in made.items()
    }
    samples = sorted({sample for own in kept.values() for sample in own}, key=lambda sample: tuple(map(str, sample)))
    identifying = {name for name, own in kept.items() if any(row["identified"] for row in own.values())}
    for column in ("prompt", "noun"):
        table.add_column(column)
    for column in ("asked", *kept):
        table.add_column(escape(column), justify="right")
        if column in identifying:
            table.add_column("identified", justify="right")
    for sample in samples[:PROMPTS_SHOWN]:
        _, prompt, targets, _ = sample
        columns = [[escape(prompt)], [escape(noun) for noun, _ in targets], [str(count) for _, count in targets]]
        for name, own in kept.items():
            row = own.get(sample)
            columns.append(_detected(row, verdicts))
            if name in identifying:
                seen = row["identified"] if row else None
                sure = (row and row["confidences"]) or [None] * len(seen or [])
                columns.append(list(map(_identified, seen, sure)) if seen else ["–"])
        table.add_row(*map("\n".join, columns), end_section=True)
    if (all_samples := of or len(samples)) > PROMPTS_SHOWN:
        table.caption = f"the first {PROMPTS_SHOWN} of {all_samples}; `numina report` shows more"
    return table


def _identified(noun: Mapping[str, Any], confidence: float | None) -> str:
    """A noun's identified count and, where the reading tells it, its confidence."""
    return str(noun["count"]) if confidence is None else f"{noun['count']} ({confidence:.2f})"


def _detected(row: Mapping[str, Any] | None, verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A noun's detected count per line, green where all frames have the asked one."""
    if row is None or row["key"] not in verdicts:
        return ["–"]
    verdict = verdicts[row["key"]]
    if verdict["detected"] is None:
        return ["[red]no video[/red]"]
    return [
        f"[{'green' if set(noun['frames']) == {target['count']} else 'red'}]{shown_count(noun['frames'])}[/]"
        for target, noun in zip(row["targets"], verdict["detected"], strict=True)
    ]


def shown_count(frames: Sequence[int]) -> str:
    """A noun's detected counts in few characters: `3` in all frames, else the commonest with the share it holds."""
    commonest, times = Counter(frames).most_common(1)[0]
    return str(commonest) if times == len(frames) else f"{commonest} ({times}/{len(frames)})"


def strategy_table(judge: "JudgeSummary", cost_unit: str) -> Table:
    """A line per strategy, as the paper's table has them: CountAcc, temporal consistency, CLIP score; and the cost."""
    table = Table(title=escape(f"judged by {judge.judge}"), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("strategy", no_wrap=True)
    for column in ("CountAcc", "95 %", "TC", "CLIP", "accepted", "cost of one"):
        table.add_column(column, justify="right", no_wrap=True)
    for own in judge.strategies:
        measures = own.whole.measures
        accuracy = measures.get("count_accuracy")
        table.add_row(
            escape(own.strategy),
            _mean(measures, "count_accuracy"),
            f"{accuracy.low:.3f}–{accuracy.high:.3f}" if accuracy else "–",
            *(_mean(measures, name) for name in ("temporal_consistency", "clip_score")),
            f"{own.accepted} of {own.accepted + own.rejected}",
            "–" if own.cost_per_accepted is None else f"{own.cost_per_accepted:.1f}",
        )
    table.caption = f"cost of one: of an accepted clip, in {cost_unit}; TC, CLIP: by a judge of kind clip"
    return table


def difference_text(found: "Difference") -> str:
    """A paired difference with its interval and p."""
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}, p {found.p_value:.2g})"


def _mean(measures: Mapping[str, "Interval"], name: str) -> str:
    return f"{measures[name].mean:.3f}" if name in measures else "–"


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


def node_table(nodes: Mapping[str, Sequence["Result"]]) -> Table:
    """Of the checks on a cluster's nodes, those that aren't good on all; nodes that say alike share a line."""
    from cluster.doctor.nodes import differing

    table = _check_columns(f"{len(nodes)} nodes: checks that aren't ok on all of them")
    for name, lines in differing(nodes).items():
        alike: dict[tuple[str, str], list[str]] = {}
        for node, line in lines.items():
            alike.setdefault((line.state, line.remedy), []).append(node)
        for (state, remedy), owners in alike.items():
            found = f"{', '.join(owners)}: {lines[owners[0]].found}"
            table.add_row(escape(name), _state(state), _with_remedy(found, remedy))
    if not table.row_count:
        table.add_row("all", _state("ok"), "")
    return table


def check_table(results: Sequence["Result"]) -> Table:
    """What `numina doctor` found, each line with its remedy."""
    table = _check_columns(None)
    for result in results:
        table.add_row(escape(result.name), _state(result.state), _with_remedy(result.found, result.remedy))
    return table


def _check_columns(title: str | None) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="", pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what is here, and what to do", overflow="fold")
    return table


def _state(state: str) -> str:
    colours = {"ok": "green", "warning": "yellow", "fails": "bold red"}
    return f"[{colours[state]}]{state}[/]"


def _with_remedy(found: str, remedy: str) -> str:
    return escape(found) + (f"\n→ {escape(remedy)}" if remedy else "")
