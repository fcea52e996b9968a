"""What the report promises: one safe page that needs nothing but the videos beside it, and tells their counts right."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
import pytest
from PIL import Image

from cluster.report import build_report
from cluster.report.layout_image import layout_image
from cluster.store import Store
from numina.errors import OutputError
from numina.refine import Region

LATENT_FRAMES, FRAMES, GRID, PIXELS = 5, 17, 16, 128
HOSTILE = '<script>alert("x")</script> three cats & two dogs "on" a {{ sofa }}'


def discs(count: int, offset: int) -> np.ndarray:
    """Instances 1 to `count` of one noun as int16 [F, H, W], moving to the right."""
    labels = np.zeros((LATENT_FRAMES, GRID, GRID), np.int16)
    rows, columns = np.mgrid[:GRID, :GRID]
    for frame in range(LATENT_FRAMES):
        for instance in range(count):
            y, x = 3 + 5 * (instance // 3) + offset, 2 + 5 * (instance % 3) + frame // 2
            labels[frame][(rows - y) ** 2 + (columns - x) ** 2 <= 4] = instance + 1
    return labels


def a_video(labels: np.ndarray, colours: list[tuple[int, int, int]]) -> bytes:
    """An mp4 that shows the instances of labels [nouns, F, H, W] in their noun's colour."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1"})
        stream.width = stream.height = PIXELS
        stream.pix_fmt = "yuv420p"
        for frame in range(FRAMES):
            picture = np.full((PIXELS, PIXELS, 3), 40, np.uint8)
            for noun, colour in zip(labels[:, (frame + 3) // 4], colours, strict=True):
                picture[np.kron(noun > 0, np.ones((8, 8), bool))] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def a_dataset(root: Path, prompts: dict[str, dict[str, int]], judged: bool = True) -> Store:
    """An output with a baseline video (one instance too many of each noun) and a guided one of every prompt."""
    store = Store(str(root))
    store.open_run({"steps": 25}, asked=2 * len(prompts) + 1)
    for number, (prompt, targets) in enumerate(prompts.items()):
        wrong = np.stack([discs(count + 1, 7 * noun) for noun, count in enumerate(targets.values())])
        right = np.stack([discs(count, 7 * noun) for noun, count in enumerate(targets.values())])
        regions = np.where(right > 0, Region.KEEP, np.where(wrong > 0, Region.REMOVE, Region.NONE)).astype(np.int8)
        colours = [(220, 60, 50), (60, 120, 230)][: len(targets)]
        for strategy, labels in (("baseline", wrong), ("numina", right)):
            key = hashlib.blake2b(f"{prompt}{strategy}".encode(), digest_size=16).hexdigest()
            counts = [count + (strategy == "baseline") for count in targets.values()]
            file_name, sha256 = store.put_video(key, a_video(labels, colours))
            row: dict[str, Any] = {
                "key": key,
                "id": f"p{number}",
                "file_name": file_name,
                "video_sha256": sha256,
                "prompt": prompt,
                "targets": [{"noun": noun, "count": count} for noun, count in targets.items()],
                "strategy": strategy,
                "seed": 7 + number,
                "sample": 0,
                "model": "testbed",
                "fps": 8,
                "num_frames": FRAMES,
                "width": PIXELS,
                "height": PIXELS,
                "timings": {"denoise": 12.5, "decode": 0.8},
                "guided": strategy == "numina",
            }
            if strategy == "numina":
                arrays = {"labels": wrong, "refined": right, "regions": regions, "nouns": np.array(list(targets))}
                row["layout_file"] = store.put_layout(key, arrays)
                row["shortfall"] = [0] * len(targets)
                row["identified"] = [
                    {"noun": noun, "frames": [count + 1] * LATENT_FRAMES, "count": count + 1}
                    for noun, count in targets.items()
                ]
            store.commit(row)
            if judged:
                detected = [{"noun": n, "frames": [c] * FRAMES} for n, c in zip(targets, counts, strict=True)]
                accuracy = float(strategy == "numina")
                store.put_evaluation("exact", key, {"detected": detected, "count_accuracy": accuracy})
    return store


class Page(HTMLParser):
    """A page's elements with their attributes and text, and what isn't closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "img", "line", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("my out")
    store = a_dataset(root, {HOSTILE: {"cats": 3, "dogs": 2}, "four birds": {"birds": 4}})
    store.fail("0" * 32, {"prompt": "five <b>owls</b>", "error": "GangError: lost"})
    return root


@pytest.fixture(scope="module")
def page(output: Path) -> Page:
    return Page(build_report(output).read_text())


def test_the_page_is_well_formed(page: Page) -> None:
    """Every element is closed in order, ids are unique, labels and headings point to what is there."""
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {attributes.get("aria-labelledby") or attributes.get("for") for _, attributes in page.elements} - {None}
    assert referred
    assert referred <= set(ids)


def test_text_from_the_prompt_set_is_only_text(output: Path, page: Page) -> None:
    """A prompt with markup, quotes and template braces is shown as it is, and runs nothing."""
    html = build_report(output).read_text()
    assert len(page.all("script")) == 1
    assert "alert(" not in html.replace("alert(&#34;x&#34;)", "")
    assert "<b>owls" not in html
    assert HOSTILE in "".join(page.text)


def test_the_videos_are_there_and_silent(output: Path, page: Page) -> None:
    """Every video is linked relative to the page, baseline beside numina, with controls; none starts by itself."""
    videos = page.all("video")
    assert len(videos) == 4
    for video in videos:
        assert (output / unquote(str(video["src"]))).is_file()
        assert {"controls", "loop", "muted"} <= video.keys()
        assert "autoplay" not in video
        assert video["aria-label"]
    strategies = [str(video["aria-label"]).split(":")[0] for video in videos]
    assert strategies == ["baseline", "numina"] * 2


def test_nothing_is_fetched_from_elsewhere(output: Path, page: Page) -> None:
    """The page has no address but the videos' and its own pictures': it works from file:// without a network."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "poster", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("videos/", "data:image/png;base64,", "#")) or not value, (tag, value)
    html = build_report(output).read_text()
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest|url\((?!\$)", html)


def test_counts_and_accuracy_are_the_datasets(page: Page) -> None:
    """The table by strategy and the badges say what the judge said."""
    text = " ".join(" ".join(page.text).split())
    assert "videos 4 of 5 prompts 2 guided 2 of 2 failed 1" in text
    assert "baseline 0 % 0 % 4.5 – 6 – 2 of 2 13.3 s" in text
    assert "numina 100 % 100 % 4.5 6 4.5 0 % 2 of 2 13.3 s" in text
    assert text.count("✓ exact · 100 %") == 2
    assert text.count("✗ off · 0 %") == 2
    assert "1 failed" in text


def test_layouts_have_a_slider_per_clip(page: Page) -> None:
    """A clip with a layout has its two strips, described in words, and a labelled slider over the latent frames."""
    strips = [image for image in page.all("img") if str(image["src"]).startswith("data:image/png")]
    assert len(strips) == 4
    assert "cats per latent frame: 4 4 4 4 4" in str(strips[0]["alt"])
    sliders = [field for field in page.all("input") if field["type"] == "range"]
    assert [slider["max"] for slider in sliders] == [str(LATENT_FRAMES - 1)] * 2


def test_a_bare_dataset_has_a_page_too(tmp_path: Path) -> None:
    """Without verdicts, with a lost video and a lost layout the page says so and is made; it may lie elsewhere."""
    store = a_dataset(tmp_path / "out", {"two cats": {"cats": 2}}, judged=False)
    for row in store.rows().to_pylist():
        (tmp_path / "out" / (row["layout_file"] or row["file_name"])).unlink()
    path = build_report(tmp_path / "out", tmp_path / "pages" / "a.html")
    page = Page(path.read_text())
    assert "video missing" in "".join(page.text)
    assert "numina evaluate" in "".join(page.text)
    (video,) = page.all("video")
    assert (path.parent / unquote(str(video["src"]))).is_file()
    assert page.all("img") == []


def test_an_empty_or_remote_output_is_an_error(tmp_path: Path) -> None:
    """No page without rows; and none whose videos it couldn't play."""
    with pytest.raises(OutputError, match="no rows"):
        build_report(tmp_path)
    with pytest.raises(OutputError, match="remote"):
        build_report("s3://bucket/out")


def test_layout_pictures_tell_the_changes() -> None:
    """Nearest-neighbour at a whole scale, frames side by side; red where removed, green around what was added."""
    labels = np.zeros((1, 2, GRID, GRID), np.int16)
    labels[0, :, 2:6, 2:6], labels[0, 1, 9:13, 9:13] = 1, 2
    regions = np.where(labels > 0, Region.KEEP, Region.NONE).astype(np.int8)
    regions[0, 0, 9:13, 2:6] = Region.REMOVE
    regions[0, 1, 9:13, 9:13] = Region.ADD_DISC
    image = layout_image(labels, regions)
    encoded = image.uri.removeprefix("data:image/png;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    assert picture.shape == (image.height, image.frames * image.width, 4) == (128, 256, 4)

    def colours(frame: int, rows: slice, columns: slice) -> set[str]:
        scaled = picture[
            rows.start * 8 : rows.stop * 8, frame * 128 + columns.start * 8 : frame * 128 + columns.stop * 8
        ]
        return {"#" + bytes(pixel[:3]).hex() for pixel in scaled.reshape(-1, 4) if pixel[3]}

    assert "#ff5a4f" in colours(0, slice(9, 13), slice(2, 6))
    assert colours(1, slice(9, 13), slice(9, 13)) == {"#4c8dff", "#2fd06f"}
    assert colours(0, slice(2, 6), slice(2, 6)) == {"#4c8dff", "#10131a"}
    assert colours(1, slice(0, 1), slice(0, GRID)) == set()
