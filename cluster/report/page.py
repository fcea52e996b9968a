"""From an output to its report page: rows, verdicts and layouts in, one HTML file out, which needs only the videos.

Data flows forward: rows and verdicts → `Clip` → `Group` (one prompt's clips) → template.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from cluster.atomic import open_files
from cluster.report.layout_image import LayoutImage, layout_image, noun_colour
from cluster.store import Status, Store
from numina.errors import OutputError

MAX_CLIPS = 200


@dataclass(frozen=True, kw_only=True)
class Spark:
    """A noun's detected counts over the video as a step line in a box of 100 × 24, and the asked count's height."""

    points: str
    asked_y: float


@dataclass(frozen=True, kw_only=True)
class NounCount:
    """One noun of a clip: how many were asked for, seen in the layout, and detected in the video."""

    noun: str
    colour: str
    asked: int
    identified: int | None  # None for plain generation
    detected: int | None  # the commonest count over the frames; None where no judge saw the video
    steady: float | None  # share of frames with that count
    spark: Spark | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge said of a clip."""

    judge: str
    accuracy: float  # CountAcc, in [0, 1]
    frames: Mapping[str, Sequence[int]]  # noun → detected count per frame; empty where the video couldn't be read

    @property
    def word(self) -> str:
        """The verdict in a word, which is its CSS class too."""
        return "exact" if self.accuracy == 1 else "close" if self.accuracy >= 0.5 else "off"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video of the page."""

    row: Mapping[str, Any]
    href: str | None  # relative to the page; None when the video is missing
    verdict: Verdict | None
    counts: Sequence[NounCount]
    identified: LayoutImage | None
    refined: LayoutImage | None
    identified_frames: Mapping[str, Sequence[int]]  # noun → count per latent frame

    @property
    def seconds(self) -> float | None:
        """Time that the clip took, over all stages; None when it wasn't taken."""
        stages = [value for value in (self.row["timings"] or {}).values() if value is not None]
        return sum(stages) if stages else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """The clips of one prompt, the plain ones first."""

    title: Sequence[tuple[str, str | None]]  # the prompt in pieces; a noun's piece comes with its colour
    id: str | None
    targets: Sequence[tuple[str, str, int]]  # noun, colour, asked count
    clips: Sequence[Clip]


@dataclass(frozen=True, kw_only=True)
class StrategyScore:
    """A strategy's line in the table of accuracy."""

    strategy: str
    clips: int
    asked: float  # objects per clip, mean
    identified: float | None
    detected: float | None
    layout_right: float | None  # share of nouns whose identified count is the asked one
    accuracy: float | None  # mean CountAcc of the judged clips
    exact: float | None  # share of the judged clips that are right in every frame
    judged: int
    seconds: float | None  # per clip, mean


def build_report(store_root: str | Path, out: Path | None = None) -> Path:
    """Writes the report of an output and returns where it is: `out`, or `report.html` in the output's folder.

    The page shows up to 200 clips and plays the videos where they lie, by relative links. Raises OutputError when the
    output is remote or holds no rows.
    """
    root = str(store_root)
    if "://" in root and not root.startswith("file://"):
        raise OutputError(f"output {root!r} is remote, a page can't play its videos: copy it to a local folder first")
    store = Store(root, single_writer=True)  # a reader needs no promise
    rows = store.rows().to_pylist()
    if not rows:
        raise OutputError(f"output {root!r} holds no rows: give a folder that `numina run` wrote to")
    page = Path(out) if out is not None else Path(store.root) / "report.html"
    html = render_page(store, rows, page.parent.resolve())
    open_files(str(page.parent.resolve())).replace(page.name, html.encode())
    return page


def render_page(store: Store, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The page's HTML, for a page that lies in `folder`."""
    verdicts = {judge: _verdicts(store, judge) for judge in store.judges()}
    shown_judge = min(verdicts, default=None)
    shown = verdicts[shown_judge] if shown_judge else {}
    ordered = sorted(rows, key=_row_order)
    clips = [_clip(store, folder, row, shown.get(row["key"])) for row in _whole_groups(ordered)]
    done = {row["key"] for row in rows}
    failures = [(key, records[-1]) for key, records in store.failures().items() if key not in done]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "duration": _duration}
    return environment.get_template("report.html.j2").render(
        title=Path(store.root).name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        models=sorted({row["model"] for row in rows if row["model"]}),
        totals=_totals(rows, store.status()),
        tables=[(judge, _scores(ordered, verdicts[judge])) for judge in verdicts] or [(None, _scores(ordered, {}))],
        judge=shown_judge,
        groups=_groups(clips),
        shown=len(clips),
        total=len(rows),
        failures=failures,
    )


# --- rows ---


def _row_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """By id, as people count (a2 before a10), then prompt; within a prompt by sample, the baseline first."""
    name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row["id"] or "")]
    strategy = (row["strategy"] != "baseline", row["strategy"])
    return row["id"] is None, name, row["prompt"], row["sample"] or 0, strategy, row["seed"], row["key"]


def _group_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    targets = tuple((target["noun"], target["count"]) for target in row["targets"])
    return row["id"], row["prompt"], row["negative_prompt"], targets


def _whole_groups(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The first rows, about MAX_CLIPS of them, so that no prompt loses a part of its clips."""
    end = MAX_CLIPS
    while end < len(rows) and _group_key(rows[end]) == _group_key(rows[end - 1]):
        end += 1
    return rows[:end]


def _verdicts(store: Store, judge: str) -> dict[str, Verdict]:
    return {
        row["key"]: Verdict(
            judge=judge,
            accuracy=row["count_accuracy"] or 0.0,
            frames={noun["noun"]: noun["frames"] or [] for noun in row["detected"] or []},
        )
        for row in store.evaluations(judge).to_pylist()
    }


# --- clips ---


def _clip(store: Store, folder: Path, row: Mapping[str, Any], verdict: Verdict | None) -> Clip:
    layout = _layout(store, row["layout_file"])
    labels, refined, regions = layout.get("labels"), layout.get("refined"), layout.get("regions")
    video = Path(store.root).resolve() / row["file_name"]
    return Clip(
        row=row,
        href=quote(os.path.relpath(video, folder)) if video.is_file() else None,
        verdict=verdict,
        counts=_noun_counts(row, verdict),
        identified=layout_image(labels) if labels is not None else None,
        refined=layout_image(refined, regions) if refined is not None else None,
        identified_frames={noun["noun"]: noun["frames"] or [] for noun in row["identified"] or []},
    )


def _layout(store: Store, file_name: str | None) -> dict[str, np.ndarray]:
    """The arrays of a layout file; none when the row has no layout or the file is gone."""
    if file_name is None:
        return {}
    try:
        with np.load(io.BytesIO(store.read(file_name)), allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}


def _noun_counts(row: Mapping[str, Any], verdict: Verdict | None) -> list[NounCount]:
    identified = {noun["noun"]: noun["count"] for noun in row["identified"] or []}
    counts = []
    for number, target in enumerate(row["targets"]):
        frames = verdict.frames.get(target["noun"], []) if verdict else []
        detected, times = Counter(frames).most_common(1)[0] if frames else (None, 0)
        counts.append(
            NounCount(
                noun=target["noun"],
                colour=noun_colour(number),
                asked=target["count"],
                identified=identified.get(target["noun"]),
                detected=detected,
                steady=times / len(frames) if frames else None,
                spark=_spark(frames, target["count"]) if frames else None,
            )
        )
    return counts


def _spark(frames: Sequence[int], asked: int) -> Spark:
    top = max(*frames, asked, 1) + 0.5

    def height(count: int) -> float:
        return round(24 * (1 - count / top), 2)

    width = 100 / len(frames)
    corners = [(x, height(count)) for n, count in enumerate(frames) for x in (n * width, (n + 1) * width)]
    return Spark(points=" ".join(f"{x:.2f},{y}" for x, y in corners), asked_y=height(asked))


def _groups(clips: Sequence[Clip]) -> list[Group]:
    gathered: dict[tuple[Any, ...], list[Clip]] = {}
    for clip in clips:
        gathered.setdefault(_group_key(clip.row), []).append(clip)
    return [_group(members) for members in gathered.values()]


def _group(clips: Sequence[Clip]) -> Group:
    row = clips[0].row
    targets = [(target["noun"], noun_colour(number), target["count"]) for number, target in enumerate(row["targets"])]
    return Group(title=_coloured(row["prompt"], targets), id=row["id"], targets=targets, clips=clips)


def _coloured(prompt: str, targets: Sequence[tuple[str, str, int]]) -> list[tuple[str, str | None]]:
    """The prompt cut at its nouns, each with its colour."""
    colours = {noun.lower(): colour for noun, colour, _ in targets}
    nouns = "|".join(re.escape(noun) for noun in sorted(colours, key=len, reverse=True))
    pieces = re.split(rf"(?i)\b({nouns})\b", prompt) if nouns else [prompt]
    return [(piece, colours.get(piece.lower())) for piece in pieces if piece]


# --- totals ---


def _totals(rows: Sequence[Mapping[str, Any]], status: Status) -> list[tuple[str, str]]:
    """What stands in the page's head: label and value."""
    guided = sum(bool(row["guided"]) for row in rows)
    corrected = [row for row in rows if row["strategy"] != "baseline"]
    gpu = [row["gpu_seconds"] for row in rows if row["gpu_seconds"] is not None]
    totals = [
        ("videos", f"{len(rows)}" if status.asked is None else f"{len(rows)} of {max(status.asked, len(rows))}"),
        ("prompts", str(len({_group_key(row) for row in rows}))),
        ("guided", f"{guided} of {len(corrected)}" if corrected else "0"),
        ("failed", str(status.failed)),
    ]
    if gpu:
        totals.append(("GPU time", _duration(sum(gpu))))
    return totals


def _scores(rows: Iterable[Mapping[str, Any]], verdicts: Mapping[str, Verdict]) -> list[StrategyScore]:
    by_strategy: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_strategy.setdefault(row["strategy"], []).append(row)
    return [
        _score(name, by_strategy[name], verdicts) for name in sorted(by_strategy, key=lambda n: (n != "baseline", n))
    ]


def _score(strategy: str, rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Verdict]) -> StrategyScore:
    judged = [verdicts[row["key"]] for row in rows if row["key"] in verdicts]
    asked = [sum(target["count"] for target in row["targets"]) for row in rows]
    identified = [sum(noun["count"] for noun in row["identified"]) for row in rows if row["identified"]]
    right = [
        noun["count"] == target["count"]
        for row in rows
        for noun, target in zip(row["identified"] or [], row["targets"], strict=False)
    ]
    detected = [sum(map(_mean_or_zero, verdict.frames.values())) for verdict in judged]
    seconds = [sum(filter(None, row["timings"].values())) for row in rows if row["timings"]]
    return StrategyScore(
        strategy=strategy,
        clips=len(rows),
        asked=sum(asked) / len(asked),
        identified=_mean(identified),
        detected=_mean(detected),
        layout_right=_mean(right),
        accuracy=_mean([verdict.accuracy for verdict in judged]),
        exact=_mean([verdict.accuracy == 1 for verdict in judged]),
        judged=len(judged),
        seconds=_mean(seconds),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_or_zero(values: Sequence[float]) -> float:
    return _mean(values) or 0.0


# --- how values are shown ---


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
