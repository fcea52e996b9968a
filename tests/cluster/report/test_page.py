"""What the report's files promise: a safe page, data that no prompt makes into code, one whole report at a time."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.report import build_report
from numina.errors import InputError, OutputError
from tests.cluster.report.conftest import HOSTILE, MANY, judge, make_large, put_clip


class Page(HTMLParser):
    """A page's elements with their attributes and text, and what isn't closed in order."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def data(page: Path, kind: str) -> list[str]:
    """The page's data files of one kind."""
    return [path.read_text() for path in sorted((page.parent / page.stem).glob(f"{kind}-*"))]


def called(script: str) -> list[object]:
    """The arguments of a data file's one call."""
    match = re.fullmatch(r"numina\.\w+\((.*)\);\n", script)
    assert match
    arguments: list[object] = json.loads(f"[{match[1]}]")
    return arguments


def test_the_page_is_well_formed(page: Path) -> None:
    """Every element is closed in order, ids are unique also over the plots, labels point to what is there."""
    parsed = Page(page.read_text())
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = ("aria-labelledby", "aria-controls", "for", "list")
    referred = {attributes[name] for _, attributes in parsed.elements for name in names if name in attributes}
    assert referred
    assert referred <= set(ids)


def test_the_page_runs_its_own_scripts_alone(page: Path) -> None:
    """A policy without inline code, nothing inline, and no address but those of the files beside it."""
    html = page.read_text()
    parsed = Page(html)
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in str(policy)
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href"):
            assert re.match(r"report/[a-z]+-[0-9a-f]{16}\.(js|css)$|#|data:,$|None", str(attributes.get(name))), tag
    assert {tag for tag, _ in parsed.elements} & {"style", "iframe", "object", "base"} == set()
    assert not re.search(
        r"https?://|@import",
        "".join([html, *data(page, "app"), *data(page, "style")]).replace("http://www.w3.org/2000/svg", ""),
    )


def test_text_from_the_prompt_set_is_data(page: Path) -> None:
    """In data files a prompt is JSON of ASCII without `<`; failures' texts aren't markup of the page."""
    for script in (text for kind in ("index", "chunk", "failures") for text in data(page, kind)):
        assert script.isascii()
        assert "<" not in script
        assert called(script)
    (index,) = data(page, "index")
    assert HOSTILE in called(index)[0]["prompts"]  # type: ignore[index]
    html = page.read_text()
    assert "<b>owls" not in html
    assert "RankDied: rank … &lt;i&gt;" in html


def test_scores_are_the_datasets(page: Path) -> None:
    """The tables by judge: CountAcc, exact clips, clips, and rank-seconds of all attempts per verified clip."""
    text = " ".join(" ".join(Page(page.read_text()).text).split())
    assert "clips 7 of 9 prompts 3 guided 4 of 4 failed 2 rank time 1.5 min" in text
    assert re.search(r"counter\. .* baseline 33\.3 % [\d.–]+ 33\.3 % – 3 13\.0 s 39\.0 s numina 33\.3 %", text)
    assert re.search(r"numina\+verified 66\.7 % [\d.–]+ 66\.7 % 0 % 3 17\.3 s 26\.0 s Plots", text)
    assert re.search(r"detector\. .* baseline 0 % 0\.0–0\.0 0 %", text)


def test_confidence_and_what_was_left_alone_are_shown(tmp_path: Path) -> None:
    """Beside the counts of each clip, and how many clips were left alone; of clips without them nothing is."""
    store = Store(str(tmp_path / "out"))
    store.open_run({})
    targets = {"cats": 3, "dogs": 2}
    why = {"confidences": [0.9, 0.125], "left_alone": "read with a confidence below 0.5: dogs 0.12", "guided": False}
    put_clip(store, "three cats and two dogs", targets, targets, strategy="numina", **why)
    put_clip(store, "three cats and two dogs", targets, targets)
    page = build_report(tmp_path / "out")
    [[clips]] = [[group["clips"] for group in called(chunk)[1]] for chunk in data(page, "chunk")]  # type: ignore
    assert [(clip["confidences"], clip["left_alone"]) for clip in clips] == [
        (None, None),
        (why["confidences"], why["left_alone"]),
    ]
    assert "left alone 1" in " ".join(" ".join(Page(page.read_text()).text).split())


def test_the_same_again_is_the_same(output: Path, page: Path) -> None:
    """A second report has the same data files; what an older one left goes, and nobody else's file is touched."""
    folder = page.parent / page.stem
    before = {path.name for path in folder.iterdir()}
    assert build_report(output) == page
    assert {path.name for path in folder.iterdir()} == before
    other = output.parent / "elsewhere" / "a.html"
    said = CliRunner().invoke(app, ["report", str(output), "--output", str(other)], catch_exceptions=False).output
    assert "a.html" in said
    (other.parent / "a" / "notes.txt").write_text("mine")
    (other.parent / "a" / "chunk-0123456789abcdef.js").write_text("of an older report")
    build_report(output, other)
    names = {path.name for path in (other.parent / "a").iterdir()}
    assert "notes.txt" in names
    assert "chunk-0123456789abcdef.js" not in names
    assert {name for name in names if name.startswith("app")} == {name for name in before if name.startswith("app")}


def test_a_bare_dataset_has_a_page_too(tmp_path: Path) -> None:
    """Without verdicts, with a torn layout, it says so and is made."""
    store = Store(str(tmp_path / "out"))
    store.open_run({})
    put_clip(store, "two cats", {"cats": 2}, {"cats": 2}, strategy="numina")
    (row,) = store.rows().to_pylist()
    (tmp_path / "out" / row["layout_file"]).write_bytes(b"PK torn")
    page = build_report(tmp_path / "out")
    assert "numina evaluate" in "".join(Page(page.read_text()).text)
    (chunk,) = data(page, "chunk")
    (clip,) = called(chunk)[1][0]["clips"]  # type: ignore[index]
    assert clip["layout"] is None
    assert clip["seed"] == str(2**62 + 1)


def test_an_empty_or_remote_output_is_an_error(tmp_path: Path) -> None:
    """No page without rows, none whose videos it couldn't play, none that would mix its data with other files."""
    with pytest.raises(OutputError, match=r"no run\.json"):
        build_report(tmp_path)
    Store(str(tmp_path / "begun")).open_run({})
    with pytest.raises(OutputError, match="no rows and no failures yet"):
        build_report(tmp_path / "begun")
    with pytest.raises(OutputError, match="remote"):
        build_report("s3://bucket/out")
    make_large(tmp_path / "out")
    with pytest.raises(InputError, match=r"--output is .*videos', but the file must end in \.html"):
        build_report(tmp_path / "out", tmp_path / "out" / "videos")


@pytest.mark.parametrize("by", ["random", "worst", "newest", "noun"])
def test_a_sample_is_stated_and_sums_are_of_all(tmp_path: Path, by: str) -> None:
    """Whole prompts, chosen as asked; the choice is printed and shown, the head counts every clip."""
    store = make_large(tmp_path / "out")
    rows = store.rows().to_pylist()
    for row in rows[:300]:
        shown = {target["noun"]: target["count"] + (row["key"] == rows[7]["key"]) for target in row["targets"]}
        judge(store, "counter", row["key"], {t["noun"]: t["count"] for t in row["targets"]}, shown)
    page = tmp_path / "page.html"
    arguments = ["report", str(tmp_path / "out"), "-o", str(page), "--sample", "40", "--by", by]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    told = f"Sums and plots are of all {MANY:,} clips. The pages show 40 clips of 40 prompts"
    assert told in " ".join(done.output.split())
    html = page.read_text()
    assert told in html
    assert f"<dd>{MANY:,} of {MANY:,}</dd>" in html
    index = called(data(page, "index")[0])[0]
    assert isinstance(index, dict)
    assert len(index["prompts"]) == sum(index["clips"]) == 40
    if by == "worst":
        assert rows[7]["id"] in index["ids"]
    if by == "noun":
        assert len({tuple(own[::2]) for own in index["targets"]}) == 2
    assert len(list((tmp_path / "page").glob("chunk-*"))) == 3


def test_a_small_output_is_shown_whole(output: Path, tmp_path: Path) -> None:
    """Also where more are asked for, or 0: all."""
    for sample in (None, 0, 1000):
        html = build_report(output, tmp_path / "page.html", sample=sample).read_text()
        assert "Sums and plots are of all" not in html
