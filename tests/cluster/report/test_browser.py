"""What the report promises to its reader, in a real browser from file://: nothing here is seen by a mock."""

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.dataset.store import Store
from cluster.report import build_report
from cluster.report.sample import By
from tests.cluster.report.conftest import HOSTILE, LATENT_FRAMES, MANY, make_large

OPAQUE = """canvas => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    const found = {};
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] === 255) {
            const colour = [...pixels.slice(i, i + 3)].join();
            found[colour] = (found[colour] ?? 0) + 1;
        }
    return found;
}"""
BLUE, EDGE, RED = "76,141,255", "16,19,26", "255,90,79"  # the first noun, an edge, what was removed


class Tab:
    """A page of the browser, and all that it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.trouble: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.trouble.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str) -> None:
        self.page.goto("about:blank")
        self.page.goto(address)
        self.page.wait_for_selector("#prompts > *")

    def wait_for(self, expression: Callable[[], object]) -> None:
        """Until it is true, for 5 seconds; the page's policy forbids Playwright's own way."""
        for _ in range(100):
            if expression():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError("waited in vain")

    @property
    def prompts(self) -> list[str]:
        texts: list[str] = self.page.locator(".prompt h2").all_text_contents()
        return texts

    @property
    def found(self) -> str:
        return str(self.page.locator("#found").text_content())

    def card(self, prompt: int, strategy: str) -> Any:
        named = self.page.locator(".card", has=self.page.locator("h3", has_text=re.compile(f"^{re.escape(strategy)}$")))
        return self.page.locator(".prompt").nth(prompt).locator(named)


@pytest.fixture(scope="module")
def browser_tab(chromium: Any) -> Iterator[Tab]:
    yield (tab := Tab(chromium.new_page(viewport={"width": 1280, "height": 900})))
    tab.page.close()


@pytest.fixture
def tab(browser_tab: Tab, page: Path) -> Iterator[Tab]:
    """The report, opened anew; whatever is done with it, the browser has nothing to complain of."""
    browser_tab.trouble.clear()
    browser_tab.requests.clear()
    browser_tab.open(page.as_uri())
    yield browser_tab
    assert browser_tab.trouble == []


def test_markup_in_a_prompt_stays_text(tab: Tab) -> None:
    """In the heading, and as nothing else: no image, no handler, no script of its own; failures' texts, too."""
    assert tab.prompts == [HOSTILE, "four birds", "one lost owl"]
    assert tab.page.locator("img, #prompts script").count() == 0
    assert tab.page.locator(".prompt mark").all_text_contents() == ["cats", "dogs", "birds", "owl"]
    tab.page.locator("[data-reason] summary", has_text="RankDied").click()
    tab.page.wait_for_selector("[data-reason] td")
    assert tab.page.locator("[data-reason][open] td").all_text_contents()[:3] == [
        "five <b>owls</b>",
        "RankDied: rank 0 <i>",
        "3",
    ]


def test_nothing_leaves_the_report(tab: Tab, page: Path) -> None:
    """All that is asked for lies in the output, the videos only when they come near."""
    folder = page.parent.as_uri()
    tab.wait_for(lambda: any("/videos/" in url for url in tab.requests))
    assert all(url.startswith((folder, "data:", "blob:")) for url in tab.requests)


def test_videos_play_together_and_by_key(tab: Tab) -> None:
    """Space plays a prompt's clips side by side, space again pauses them; the slider follows."""
    videos = tab.page.locator(".prompt").first.locator("video")
    assert videos.count() == 2
    tab.wait_for(lambda: videos.evaluate_all("all => all.every(video => video.readyState >= 2)"))
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("Space")
    tab.wait_for(lambda: videos.evaluate_all("all => all.every(video => video.currentTime > 0.6)"))
    assert tab.page.locator(".prompt").first.get_by_role("button").first.text_content() == "Pause all"
    assert int(tab.page.locator(".timeline input").first.input_value()) > 0
    tab.page.keyboard.press("Space")
    assert videos.evaluate_all("all => all.every(video => video.paused)")


def test_the_slider_moves_the_layout_over_the_video(tab: Tab) -> None:
    """Per latent frame: the overlay's discs move to the right with the slider, and the videos are sought to the frame;
    what was removed is hatched in the refined layout alone."""
    card, overlay = tab.card(0, "numina"), tab.card(0, "numina").locator(".overlay")
    assert overlay.is_hidden()
    tab.page.get_by_role("radio", name="identified").check()
    tab.wait_for(lambda: overlay.is_visible())
    first = overlay.evaluate(OPAQUE)
    assert first[BLUE] > 1000
    assert first[EDGE] > 100
    assert RED not in first
    assert tab.card(0, "baseline").locator(".overlay").is_hidden()
    before = overlay.evaluate("canvas => canvas.toDataURL()")
    slider = card.locator("xpath=ancestor::section").locator(".timeline input")
    slider.fill(str(LATENT_FRAMES - 1))
    assert overlay.evaluate("canvas => canvas.toDataURL()") != before
    assert card.locator("video").evaluate("video => video.currentTime") == pytest.approx(16.5 / 8)
    assert slider.get_attribute("aria-valuetext") == "latent frame 5 of 5"
    tab.page.keyboard.press("3")
    assert overlay.evaluate(OPAQUE)[RED] > 50
    assert "overlay=refined" in tab.page.url
    tab.page.keyboard.press("[")
    assert slider.input_value() == str(LATENT_FRAMES - 2)
    assert len(card.locator(".strip canvas").all()) == 2


def test_the_layout_lies_where_the_video_shows_it(tab: Tab) -> None:
    """A disc's place in the overlay is its place in the frame: the colour of the video under it isn't the ground's."""
    card = tab.card(0, "numina")
    tab.page.keyboard.press("3")
    tab.wait_for(lambda: card.locator(".overlay").is_visible())
    video, overlay = (card.locator(name).bounding_box() for name in ("video", ".overlay"))
    assert overlay == pytest.approx(video, abs=1)


def test_filters_filter(tab: Tab) -> None:
    """By noun, count, verdict and strategy, alone and together; the count of results is said aloud."""
    bar = tab.page.locator("#bar")
    bar.get_by_label("Noun").fill("birds")
    bar.get_by_label("Noun").press("Tab")
    tab.wait_for(lambda: tab.prompts == ["four birds"])
    assert tab.found == "1 of 3 prompts"
    assert tab.page.locator("#found[aria-live=polite]").count() == 1
    bar.get_by_role("button", name="Reset").click()
    tab.wait_for(lambda: len(tab.prompts) == 3)
    bar.locator("[name=count]").select_option("2")
    tab.wait_for(lambda: tab.prompts == [HOSTILE])
    bar.get_by_role("button", name="Reset").click()
    bar.locator("[name=verdict]").select_option("exact")
    bar.locator("[name=strategy]").select_option("numina")
    tab.wait_for(lambda: tab.prompts == [HOSTILE])
    bar.locator("[name=strategy]").select_option("numina+verified")
    tab.wait_for(lambda: tab.prompts == [HOSTILE, "four birds"])
    bar.locator("[name=verdict]").select_option("missing")
    tab.wait_for(lambda: tab.prompts == ["one lost owl"])
    bar.locator("[name=strategy]").select_option("baseline")
    bar.locator("[name=verdict]").select_option("exact")
    tab.wait_for(lambda: tab.prompts == [])
    assert tab.page.get_by_text("No prompt passes these filters.").is_visible()
    bar.get_by_role("button", name="Reset").click()
    bar.locator("[name=change]").select_option("better")
    tab.wait_for(lambda: tab.prompts == [HOSTILE, "four birds"])


def test_search_finds_prompts_and_ids(tab: Tab) -> None:
    """All words, in any case, anywhere; `/` leads to the field, Enter to what was found."""
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("BIRDS fo")
    tab.page.keyboard.press("Enter")
    tab.wait_for(lambda: tab.prompts == ["four birds"])
    tab.wait_for(lambda: tab.page.locator(".prompt:focus h2").all_text_contents() == ["four birds"])
    tab.open(tab.page.url.split("#")[0] + "#q=p10")
    assert tab.prompts == ["one lost owl"]


def test_the_address_is_the_state(tab: Tab) -> None:
    """A shared address shows the same; the back button undoes a filter; a plot's links set filters."""
    start = tab.page.url
    tab.open(start + "#noun=birds&overlay=refined&judge=detector")
    assert tab.prompts == ["four birds"]
    assert tab.page.locator("[name=judge]").input_value() == "detector"
    assert tab.page.locator("[name=overlay]:checked").input_value() == "refined"
    assert tab.page.locator(".of-judge:visible caption").first.text_content() == "By strategy, judged by detector."
    assert "close" not in tab.card(0, "baseline").locator(".badge").text_content()
    tab.page.get_by_label("Verdict").select_option("exact")
    tab.wait_for(lambda: tab.prompts == [])
    tab.page.go_back()
    tab.wait_for(lambda: tab.prompts == ["four birds"])
    tab.page.locator(".of-judge:visible .plot a").first.dispatch_event("click")
    tab.wait_for(lambda: "strategy=baseline" in tab.page.url)
    assert "judge=detector" in tab.page.url
    tab.open(start + "#page=99&judge=nobody&overlay=<b>&count=x")
    assert tab.prompts == []


def test_attempts_of_a_chain_share_a_card(tab: Tab) -> None:
    """The kept one is shown and marked; each has its verdict, and can be looked at."""
    card = tab.card(1, "numina")
    attempts = card.locator(".attempts label")
    assert [" ".join(text.split()) for text in attempts.all_text_contents()] == [
        "1 ✗ off 0 % ★ kept",
        "2 ✓ exact 100 % ★ kept",
    ]
    assert card.locator("header").text_content().endswith("kept by numina+verified✓ exact · 100 %")
    shown = card.locator("video").get_attribute("src")
    attempts.first.click()
    assert card.locator(".badge").text_content() == "✗ off · 0 %"
    assert card.locator("video").get_attribute("src") != shown


def test_lost_videos_are_named(tab: Tab) -> None:
    """A missing file and an unreadable one, on their cards and among the failures."""
    assert tab.card(2, "baseline").locator(".badge").text_content() == "✗ missing"
    assert tab.card(2, "numina").locator(".badge").text_content() == "✗ unreadable: no frames"
    assert "isn't there" in tab.card(2, "baseline").locator(".gone").text_content()
    texts = " ".join(tab.page.locator(".failures summary").all_text_contents())
    assert re.search(r"2 guide RankDied: rank ….* 1 video unreadable: no frames", texts)
    assert "isn't there" in texts


def test_an_output_of_failures_alone_shows_them(chromium: Any, tmp_path: Path) -> None:
    """Nothing was made: the page says why, whatever is asked to be shown."""
    store = Store(str(tmp_path / "out"))
    store.open_run({"steps": 4}, asked=2)
    for digit in "01":
        record = {"final": True, "stage": "decode", "error": "one flat colour in every frame", "prompt": "three cats"}
        store.fail(digit * 32, record)
    pages = [build_report(tmp_path / "out", tmp_path / f"{by}.html", sample=1, by=by) for by in get_args(By)]
    tab = Tab(chromium.new_page())
    for page in pages:
        tab.page.goto(page.as_uri())
        tab.page.wait_for_selector(".failures summary")
        assert "one flat colour in every frame" in " ".join(tab.page.locator(".failures summary").all_text_contents())
    tab.page.close()
    assert tab.trouble == []


def test_keys_lead_through_the_prompts(tab: Tab) -> None:
    """j and k move the focus, ? shows the keys and Escape closes them; keys can be turned off."""
    focused = tab.page.locator(".prompt:focus h2")
    for key, prompt in (
        ("j", HOSTILE),
        ("j", "four birds"),
        ("j", "one lost owl"),
        ("j", "one lost owl"),
        ("k", "four birds"),
    ):
        tab.page.keyboard.press(key)
        assert focused.all_text_contents() == [prompt]
    tab.page.keyboard.press("?")
    assert tab.page.get_by_role("dialog").is_visible()
    tab.page.get_by_label("use these keys").uncheck()
    tab.page.keyboard.press("Escape")
    assert tab.page.get_by_role("dialog").is_hidden()
    tab.page.keyboard.press("3")
    assert "overlay" not in tab.page.url


def test_every_control_has_a_name(tab: Tab) -> None:
    """By a label, its text or `aria-label`; headings lead to every prompt."""
    nameless = tab.page.locator("button, input, select, video, canvas[role=img], svg[role=img]").evaluate_all(
        """all => all.filter(element => !(element.labels?.length || element.textContent.trim() || element.ariaLabel
            || element.closest('label')?.textContent.trim())).map(element => element.outerHTML)"""
    )
    assert nameless == []
    assert tab.page.get_by_role("heading", name="four birds").count() == 1


def test_far_videos_are_let_go(tab: Tab) -> None:
    """A card out of sight has no video and no pictures; in sight again it has."""
    video = tab.card(0, "numina").locator("video")
    tab.wait_for(lambda: video.get_attribute("src"))
    tab.page.evaluate("document.querySelector('.prompt').style.marginBottom = '4000px'; scrollTo(0, 9e9)")
    tab.wait_for(lambda: video.get_attribute("src") is None)
    assert tab.card(0, "numina").locator(".strip canvas").first.evaluate("canvas => canvas.width") == 0
    tab.page.evaluate("scrollTo(0, 0)")
    tab.wait_for(lambda: video.get_attribute("src"))


def test_thousands_of_prompts_come_by_the_page(browser_tab: Tab, tmp_path: Path) -> None:
    """Only the shown page's prompts are there; pages turn by key and field; search and filters see all of them."""
    make_large(tmp_path)
    browser_tab.trouble.clear()
    browser_tab.open(build_report(tmp_path).as_uri())
    assert browser_tab.found == f"{MANY:,} prompts"
    assert browser_tab.prompts[9] == "3 dogs in room 9"
    assert browser_tab.page.locator(".prompt").count() == 10
    browser_tab.page.keyboard.press("n")
    browser_tab.wait_for(lambda: browser_tab.prompts[0] == "4 cats in room 10")
    browser_tab.page.get_by_label("Page", exact=True).fill("150")
    browser_tab.page.get_by_label("Page", exact=True).press("Enter")
    browser_tab.wait_for(lambda: browser_tab.prompts[-1] == f"2 dogs in room {MANY - 1}")
    browser_tab.page.locator("#bar [name=q]").fill("room 77 ")
    browser_tab.wait_for(lambda: browser_tab.found == f"24 of {MANY:,} prompts")
    browser_tab.open(browser_tab.page.url.split("#")[0] + "#noun=dog&count=7")
    assert browser_tab.found == f"107 of {MANY:,} prompts"
    assert browser_tab.trouble == []


def test_a_web_server_shows_the_same(browser_tab: Tab, page: Path) -> None:
    """Any that hands out files."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(page.parent))
    handler.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser_tab.trouble.clear()
        browser_tab.requests.clear()
        browser_tab.open(address + "report.html")
        video = browser_tab.card(0, "numina").locator("video")
        browser_tab.wait_for(lambda: video.evaluate("video => video.readyState >= 2"))
        browser_tab.page.goto("about:blank")
        server.shutdown()
    assert browser_tab.trouble == []
    assert all(url.startswith((address, "data:", "about:")) for url in browser_tab.requests)


def test_the_page_fits_a_phone(chromium: Any, page: Path) -> None:
    """Nothing sticks out to the side at 390 pixels; the filters open by a button."""
    tab = Tab(chromium.new_page(viewport={"width": 390, "height": 844}))
    tab.open(page.as_uri())
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.page.get_by_label("Verdict").is_hidden()
    tab.page.get_by_role("button", name="Filters").click()
    assert tab.page.get_by_label("Verdict").is_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.page.close()
    assert tab.trouble == []
