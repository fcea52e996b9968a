"""What the counting benchmark's evaluator looks for: videos by the number of their prompt, and the prompts.

    DIR/001_three_cats_chasing_two_dogs.mp4
        prompts.txt                           a prompt a line
        noun_counts.jsonl                     {"cats": 3, "dogs": 2}, line by line
        index.jsonl                           which row each video is
        sample-1/001_….mp4                    further samples of the same prompts

A number is the prompt's place in the order of ids: with all of a set's rows, that in the set. `numina prompts import`
reads such a folder.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.dataset.store import Store
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report, Video, copy_videos
from cluster.export.selection import Selection
from cluster.rows import python_rows
from cluster.storage.protocol import Files
from numina.errors import OutputError

SLUG = 100  # letters of a prompt in a file's name, at most

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt of the set."""

    id: str | None
    prompt: str
    targets: tuple[tuple[str, int], ...]


def write(store: Store, files: Files, selection: Selection, config: ExportConfig, report: Report) -> Exported:
    """The export. Prompts whose videos are lost stay in the lists, so that numbers stay the set's."""
    rows = python_rows(selection.rows.drop_columns(selection.set_columns))
    plain = sum(not row["targets"] for row in rows)
    rows = [row for row in rows if row["targets"]]
    if not rows:
        raise OutputError(f"output {store.root!r} has no clip whose prompt asks for a count; export to another form")
    numbers = {asked: number for number, asked in enumerate(prompts_of(rows), start=1)}
    videos = [
        Video(source=row["file_name"], name=_name(row, numbers[asked_of(row)]), sha256=row["video_sha256"])
        for row in rows
    ]
    lost = copy_videos(store, files, videos, report)
    files.replace("prompts.txt", "".join(f"{_line(asked.prompt)}\n" for asked in numbers).encode())
    counts = [json.dumps(dict(asked.targets), ensure_ascii=False) for asked in numbers]
    files.replace("noun_counts.jsonl", "".join(f"{line}\n" for line in counts).encode())
    files.replace("index.jsonl", _index(rows, videos, lost, numbers).encode())
    return Exported(clips=len(rows) - len(lost), lost=lost, notes=_notes(numbers, plain))


def prompts_of(rows: Sequence[Row]) -> list[Asked]:
    """The prompts as they were asked, in the order of their ids: numbers by value, others as text."""
    asked = {asked_of(row): None for row in rows}
    return sorted(asked, key=lambda own: (_number(own.id) is None, _number(own.id) or 0, own.id or "", own.prompt))


def asked_of(row: Row) -> Asked:
    """The prompt that a row is a clip of."""
    targets = tuple((target["noun"], target["count"]) for target in row["targets"])
    return Asked(id=row["id"], prompt=row["original_prompt"] or row["prompt"], targets=targets)


def _number(id: str | None) -> int | None:
    return int(id) if id is not None and id.isdecimal() else None


def _name(row: Row, number: int) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "_", asked_of(row).prompt).strip("_")[:SLUG].strip("_")
    folder = f"sample-{row['sample']}/" if row["sample"] else ""
    return f"{folder}{number:03d}_{slug or 'prompt'}.mp4"


def _line(prompt: str) -> str:
    return " ".join(prompt.split())


def _index(rows: Sequence[Row], videos: Sequence[Video], lost: dict[str, str], numbers: dict[Asked, int]) -> str:
    lines = [
        {
            "number": numbers[asked_of(row)],
            "file": video.name,
            **{name: row[name] for name in ("id", "key", "sample", "seed", "strategy", "count_accuracy", "accepted")},
        }
        for row, video in zip(rows, videos, strict=True)
        if video.source not in lost
    ]
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in sorted(lines, key=lambda line: line["file"]))


def _notes(numbers: dict[Asked, int], plain: int) -> tuple[str, ...]:
    ids, notes = [_number(asked.id) for asked in numbers], list[str]()
    if plain:
        notes.append(f"clips left out, since their prompts ask for no count, which the benchmark can't score: {plain}")
    if all(own is not None for own in ids) and ids != list(numbers.values()):
        notes.append(
            "ids aren't 1, 2, 3 …: videos are numbered in their order; give the evaluator the prompts.txt and "
            "noun_counts.jsonl of this folder, and see its index.jsonl for which is which"
        )
    return tuple(notes)
