"""From an output to its report: rows, verdicts and layouts in; a page, its data and nothing else out.

Data flows forward: rows and verdicts → `ShownClip` → `Group` (one prompt's clips) → chunks, index, plots → page. The
page is written when all its data is there, and old data is removed when no page needs it: a reader always sees one
whole report.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import jinja2

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import rank_seconds
from cluster.observability.status import Status, status_of
from cluster.report.clips import Group, ShownClip, counting_judges, groups_of, read_clips
from cluster.report.data import Place, chunks_of, failure_data, group_data, index_of, script
from cluster.report.failures import Reason, reasons_of
from cluster.report.layouts import packed_layout
from cluster.report.plots import duration, failure_plot, judge_plots
from cluster.report.scores import scores_of
from cluster.report.strategies import Results, results_by_judge
from cluster.storage.destination import check_file, check_folder
from cluster.storage.open import open_files
from cluster.storage.protocol import Files
from numina.errors import OutputError

SCRIPTS = ("data.js", "filters.js", "layout.js", "card.js", "prompts.js", "failures.js", "keys.js", "main.js")
_WRITTEN = re.compile(r"(app|chunk|failures|index|style)-[0-9a-f]{16}\.(css|js)")
_READERS = 4  # of layouts


def build_report(store_root: str | Path, out: Path | None = None) -> Path:
    """Writes the report of an output and returns where its page is: `out`, or `report.html` in the output's folder.

    The data lies in a folder of the page's name beside it; videos are played where they lie, by relative links. Raises
    OutputError when the output is remote or holds no rows.
    """
    root = str(store_root)
    if "://" in root and not root.startswith("file://"):
        raise OutputError(f"output {root!r} is remote, a page can't play its videos: copy it to a local folder first")
    if out is not None:
        check_file("--output", out, ".html")
        check_folder("--output (its data)", Path(out).with_suffix(""))
    store = Store.reader(root)
    clips = read_clips(store)
    if not clips:
        raise OutputError(f"output {root!r} holds no rows: give a folder that `numina run` wrote to")
    page = Path(out) if out is not None else Path(store.root) / "report.html"
    _write(store, clips, page.resolve())
    return page


def _write(store: Store, clips: Sequence[ShownClip], page: Path) -> None:
    files = open_files(str(page.parent), single_writer=True)
    writer = _Writer(files, page.stem)
    groups = groups_of(clips)
    results = results_by_judge(store, clips, counting_judges(clips))
    reasons = reasons_of(store.failures(), clips)
    index = index_of(groups, results) | {"folder": quote(page.stem) + "/"}
    index["chunks"] = _write_chunks(store, groups, writer, Place(Path(store.root).resolve(), page.parent))
    parts = {
        "index": writer.write("index", "js", script("index", index)),
        "failures": writer.write("failures", "js", script("failures", failure_data(reasons))),
        "app": writer.write("app", "js", _app()),
        "style": writer.write("style", "css", _template("style.css").encode()),
    }
    addresses = {name: quote(f"{page.stem}/{part}") for name, part in parts.items()}
    html = _page(store, clips, groups, results, reasons, addresses)
    files.replace(page.name, html.encode())
    writer.remove_stale()


class _Writer:
    """Data files under names of their content, so that a page never meets another one's."""

    def __init__(self, files: Files, folder: str) -> None:
        self.files = files
        self.folder = folder
        self.written: set[str] = set()

    def write(self, kind: str, suffix: str, content: bytes) -> str:
        name = f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
        self.files.replace(f"{self.folder}/{name}", content, durable=False)  # after a crash it is made again
        self.written.add(name)
        return name

    def remove_stale(self) -> None:
        """What an earlier report wrote, and nothing of anybody else's."""
        for name in self.files.names(self.folder):
            if _WRITTEN.fullmatch(name) and name not in self.written:
                self.files.remove(f"{self.folder}/{name}")


def _write_chunks(store: Store, groups: Sequence[Group], writer: _Writer, place: Place) -> list[tuple[str, int]]:
    """Each chunk's file and its number of groups."""
    chunks = []
    with ThreadPoolExecutor(_READERS) as readers:
        for number, chunk in enumerate(chunks_of(groups)):
            names = [clip.row["layout_file"] for group in chunk for clip in group.clips]
            layouts = readers.map(lambda name: packed_layout(store, name), names)
            content = [group_data(group, list(islice(layouts, len(group.clips))), place) for group in chunk]
            chunks.append((writer.write("chunk", "js", script("chunk", number, content)), len(chunk)))
    return chunks


def _app() -> bytes:
    """All scripts as one, in a scope of their own."""
    parts = "\n".join(_template(f"app/{name}") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'.encode()


@cache
def _template(name: str) -> str:
    return (resources.files("cluster.report") / "templates" / name).read_text(encoding="utf-8")


def _page(
    store: Store,
    clips: Sequence[ShownClip],
    groups: Sequence[Group],
    results: Mapping[str, Results],
    reasons: Sequence[Reason],
    parts: Mapping[str, str],
) -> str:
    first = next(iter(results))
    scores = {judge: scores_of(by_strategy, judge) for judge, by_strategy in results.items()}
    plots = {
        judge: judge_plots(results[judge], scores[judge], judge, {} if judge == first else {"judge": judge})
        for judge in results
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "duration": duration, "options": _options}
    return environment.get_template("report.html.j2").render(
        title=Path(store.root).name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        models=sorted({clip.row["model"] for clip in clips if clip.row["model"]}),
        totals=_totals(clips, groups, status_of(store)),
        strategies=list(dict.fromkeys(name for by_strategy in results.values() for name in by_strategy)),
        scores=scores,
        plots=plots,
        failure_plot=failure_plot(reasons) if reasons else None,
        reasons=reasons,
        counts=sorted({count for group in groups for _, count in group.targets}),
        detected=_detected_counts(results),
        parts=parts,
    )


def _totals(clips: Sequence[ShownClip], groups: Sequence[Group], status: Status) -> list[tuple[str, str]]:
    """What stands in the page's head: label and value."""
    guided = sum(bool(clip.row["guided"]) for clip in clips)
    corrected = sum(clip.row["layout_file"] is not None for clip in clips)
    left_alone = sum(clip.row["left_alone"] is not None for clip in clips)
    plain = sum(not clip.row["targets"] for clip in clips)
    asked = status.asked
    return [
        ("clips", f"{len(clips):,}" if asked is None else f"{len(clips):,} of {max(asked, len(clips)):,}"),
        ("prompts", f"{len(groups):,}"),
        *([("without counts", f"{plain:,}")] if plain else []),
        ("guided", f"{guided:,} of {corrected:,}" if corrected else "0"),
        *([("left alone", f"{left_alone:,}")] if left_alone else []),
        ("failed", f"{status.failed:,}"),
        ("rank time", duration(sum(rank_seconds(clip.row) for clip in clips))),
    ]


def _detected_counts(results: Mapping[str, Results]) -> list[int]:
    """All commonest counts that any judge detected."""
    return sorted(
        {
            found
            for judge, by_strategy in results.items()
            for members in by_strategy.values()
            for result in members
            if (verdict := result.clip.verdicts.get(judge)) is not None
            for noun in verdict.frames
            if (found := verdict.detected(noun)) is not None
        }
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _options(values: Iterable[str]) -> list[tuple[str, str]]:
    """Values of a choice with what it shows of them."""
    return [(value, value) for value in values]
