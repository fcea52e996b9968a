"""From an output to its report: rows, verdicts and layouts in; a page, its data and nothing else out.

Data flows forward: rows and verdicts as arrays → sums and plots of all clips, and the sample that is shown; its rows
and verdicts → `ShownClip` → `Group` (one prompt's clips) → chunks and index → page. The page is written when all its
data is there, and old data is removed when no page needs it: a reader always sees one whole report.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pyarrow as pa

from cluster.dataset.store import Store
from cluster.evaluation.clips import Clips, spread
from cluster.evaluation.judged import Evidence, read_evidence
from cluster.observability.status import Status, status_of
from cluster.report.clips import Group, groups_of, shown_clips
from cluster.report.data import Place, chunks_of, failure_data, group_data, index_of, script
from cluster.report.failures import Reason, reasons_of
from cluster.report.layouts import packed_layout
from cluster.report.plots import duration, failure_plot, judge_plots
from cluster.report.sample import SAMPLED, By, Sample, chosen
from cluster.report.scores import scores_of
from cluster.report.strategies import Sums, results_of, sums_by_judge
from cluster.storage.destination import check_file, check_folder
from cluster.storage.open import open_files
from cluster.storage.protocol import Files
from numina.errors import OutputError

SCRIPTS = ("data.js", "filters.js", "layout.js", "card.js", "prompts.js", "failures.js", "keys.js", "main.js")
_WRITTEN = re.compile(r"(app|chunk|failures|index|style)-[0-9a-f]{16}\.(css|js)")
_READERS = 4  # of layouts


def build_report(
    store_root: str | Path,
    out: Path | None = None,
    *,
    sample: int | None = None,
    by: By = "random",
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes the report of an output and returns where its page is: `out`, or `report.html` in the output's folder.

    Sums are of all clips. It shows about `sample` of them (0: all; None: SAMPLED of an output that holds more), whole
    prompts chosen by the rule `by`; `tell` is called with a sentence about the sample, if there is one. The data lies
    in a folder of the page's name beside it; videos are played where they lie, by relative links. Raises OutputError
    when the output is remote, or holds neither rows nor failures.
    """
    root = str(store_root)
    if "://" in root and not root.startswith("file://"):
        raise OutputError(f"output {root!r} is remote, a page can't play its videos: copy it to a local folder first")
    if out is not None:
        check_file("--output", out, ".html")
        check_folder("--output (its data)", Path(out).with_suffix(""))
    store = Store.reader(root)
    evidence = read_evidence(store)
    if not len(evidence.clips) and not store.failures():
        raise OutputError(f"output {root!r} holds no rows and no failures yet: report it when its job has made a clip")
    sums = sums_by_judge(store, evidence)
    first = next(iter(sums.values())).judged
    shown = chosen(evidence.clips, first, SAMPLED if sample is None else sample, by)
    page = Path(out) if out is not None else Path(store.root) / "report.html"
    _write(store, evidence, sums, shown, page.resolve())
    if shown.told:
        tell(shown.told)
    return page


def _write(store: Store, evidence: Evidence, sums: Mapping[str, Sums], sample: Sample, page: Path) -> None:
    files = open_files(str(page.parent), single_writer=True)
    writer = _Writer(files, page.stem)
    clips = shown_clips(store, evidence, sample.places)
    groups = groups_of(clips)
    reasons = reasons_of(_failures(store, evidence.clips), clips)
    index = index_of(groups, results_of(store, clips, sums)) | {"folder": quote(page.stem) + "/"}
    index["chunks"] = _write_chunks(store, groups, writer, Place(Path(store.root).resolve(), page.parent))
    parts = {
        "index": writer.write("index", "js", script("index", index)),
        "failures": writer.write("failures", "js", script("failures", failure_data(reasons))),
        "app": writer.write("app", "js", _app()),
        "style": writer.write("style", "css", _template("style.css").encode()),
    }
    addresses = {name: quote(f"{page.stem}/{part}") for name, part in parts.items()}
    html = _page(store, evidence, sums, reasons, sample.told, addresses)
    files.replace(page.name, html.encode())
    writer.remove_stale()


def _failures(store: Store, clips: Clips) -> dict[str, list[dict[str, Any]]]:
    """The records of what failed and has no row."""
    records = store.failures()
    missing = clips.places(pa.chunked_array([pa.array(list(records), pa.string())])) < 0
    return {key: tries for (key, tries), own in zip(records.items(), missing.tolist(), strict=True) if own}


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
    evidence: Evidence,
    sums: Mapping[str, Sums],
    reasons: Sequence[Reason],
    sample: str | None,
    parts: Mapping[str, str],
) -> str:
    clips = evidence.clips
    first = next(iter(sums))
    scores = {judge: scores_of(own, evidence) for judge, own in sums.items()}
    plots = {
        judge: judge_plots(own, clips, scores[judge], judge, {} if judge == first else {"judge": judge})
        for judge, own in sums.items()
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
        sample=sample,
        models=[name for name in clips.models if name],
        totals=_totals(clips, status_of(store)),
        strategies=list(dict.fromkeys(name for own in sums.values() for name in own.kept)),
        scores=scores,
        plots=plots,
        failure_plot=failure_plot(reasons) if reasons else None,
        reasons=reasons,
        counts=np.unique(clips.asked).tolist(),
        detected=_detected_counts(clips, sums),
        parts=parts,
    )


def _totals(clips: Clips, status: Status) -> list[tuple[str, str]]:
    """What stands in the page's head: label and value."""
    guided, corrected = int(clips.guided.sum()), int(clips.has_layout.sum())
    left_alone, plain = int(clips.left_alone.sum()), int(clips.plain.sum())
    asked = status.asked
    return [
        ("clips", f"{len(clips):,}" if asked is None else f"{len(clips):,} of {max(asked, len(clips)):,}"),
        ("prompts", f"{int(clips.page.max(initial=-1)) + 1:,}"),
        *([("without counts", f"{plain:,}")] if plain else []),
        ("guided", f"{guided:,} of {corrected:,}" if corrected else "0"),
        *([("left alone", f"{left_alone:,}")] if left_alone else []),
        ("failed", f"{status.failed:,}"),
        ("rank time", duration(float(clips.cost.sum()))),
    ]


def _detected_counts(clips: Clips, sums: Mapping[str, Sums]) -> list[int]:
    """All commonest counts that any judge detected."""
    found = set[int]()
    for own in sums.values():
        for kept in own.kept.values():
            targets = spread(clips.starts[kept.clip], clips.targets[kept.clip])
            found.update(np.unique(own.judged.commonest[targets]).tolist())
    return sorted(found - {-1})


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _options(values: Iterable[str]) -> list[tuple[str, str]]:
    """Values of a choice with what it shows of them."""
    return [(value, value) for value in values]
