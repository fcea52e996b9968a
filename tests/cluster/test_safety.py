"""What numina never does with what others wrote: run it, expand it, be led elsewhere by it, tell its secrets."""

import ast
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import cluster.api
from cluster.cli.app import app, main
from cluster.cli.tables import count_table
from cluster.cli.terminal import say
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import outcomes
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.job.strategy import Strategy
from cluster.prompts.check import read_prompts
from cluster.prompts.write import make_prompts
from cluster.report import build_report
from cluster.rows import ROW_SCHEMA
from cluster.workers.row import row_of
from numina.errors import InputError, PromptSetError
from pipelines.sampling.clip import Clip
from tests.cluster.conftest import TINY
from tests.cluster.tasks import tasks_of

ROOT = Path(__file__).parents[2]
EXPANDABLE = "${oc.env:HOME} three red circles ${generation.steps} $HOME"
KEY = "0123456789abcdef" * 2

# --- code ---

PROCESSES = {"joblib.Parallel", "joblib.delayed"}  # their messages never lie on a disk
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNS_DATA = {"eval", "exec", "torch.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "os.system"}
READS_NO_WEIGHTS = ("config", "tokenizer", "scheduler", "processor")


@cache
def parsed() -> dict[str, list[ast.AST]]:
    """What every file of our packages is made of."""
    return {
        str(file.relative_to(ROOT)): list(ast.walk(ast.parse(file.read_text())))
        for package in ("numina", "pipelines", "cluster")
        for file in sorted((ROOT / package).rglob("*.py"))
    }


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of our packages: where it stands, and what it is."""
    for file, nodes in parsed().items():
        yield from ((f"{file}:{node.lineno}", node) for node in nodes if isinstance(node, ast.Call))


def given(call: ast.Call) -> dict[str | None, Any]:
    """A call's keyword arguments, constants as themselves."""
    return {
        word.arg: word.value.value if isinstance(word.value, ast.Constant) else word.value for word in call.keywords
    }


def test_no_pickle_is_imported() -> None:
    """Ray serializes between processes; what lies on disk is Parquet, JSON, npz without objects, safetensors, mp4."""
    found = set()
    for file, nodes in parsed().items():
        for node in nodes:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{own.name}" for own in node.names] if isinstance(node, ast.ImportFrom) else []
            found |= {f"{file}: {name}" for name in names if name.split(".")[0] in PICKLES}
            found -= {f"{file}: {name}" for name in PROCESSES}
    assert not found


def test_nothing_read_is_run() -> None:
    """No call evaluates what it reads; arrays are loaded without objects, commands are started without a shell."""
    wrong = []
    for where, call in calls():
        name, words = ast.unparse(call.func), given(call)
        if name in RUNS_DATA or words.get("shell") is True:
            wrong.append(f"{where} {name}")
        if name in ("np.load", "numpy.load") and words.get("allow_pickle") is not False:
            wrong.append(f"{where} {name} without allow_pickle=False")
        if words.get("trust_remote_code", False) is not False:
            wrong.append(f"{where} {name} trusts remote code")
    assert not wrong


def test_weights_are_safetensors() -> None:
    """Whatever loads weights through diffusers or transformers refuses pickled ones and stays offline."""
    wrong = []
    for where, call in calls():
        name, words = ast.unparse(call.func), given(call)
        if not name.endswith(".from_pretrained"):
            continue
        if words.get("local_files_only") is not True:
            wrong.append(f"{where} {name} without local_files_only=True")
        if words.get("use_safetensors") is not True and not any(kind in name.lower() for kind in READS_NO_WEIGHTS):
            wrong.append(f"{where} {name} without use_safetensors=True")
    assert not wrong


# --- names ---


@pytest.mark.parametrize("id", ["../../etc/passwd", "a/b", "..\\a", "a b", "", "é", "a" * 129, "a\n", "$(id)"])
def test_an_id_is_a_plain_name(id: str, tmp_path: Path) -> None:
    """An id that could lead elsewhere is refused before any work."""
    make_prompts([{"id": id, "prompt": "three cats"}], str(tmp_path / "set.parquet"))
    with pytest.raises(PromptSetError, match="id"):
        list(read_prompts(str(tmp_path / "set.parquet"), max_count=20))


@pytest.mark.parametrize("key", ["..", "../../x", "", "a/b", KEY + "\n", KEY.upper(), "." * 32, "../" + KEY])
def test_keys_name_no_other_folder(key: str, tmp_path: Path) -> None:
    """Everything that becomes a file's name is checked: nothing is written, inside the output or outside."""
    store = Store(str(tmp_path / "out"))
    row = {"file_name": "x", "prompt": "x", "targets": [], "strategy": "numina", "seed": 0, "video_sha256": "x"}
    for write in (
        lambda: store.put_video(key, b"x"),
        lambda: store.put_layout(key, {"labels": np.zeros(1)}),
        lambda: store.commit({"key": key, **row}),
        lambda: store.fail(key, {}),
        lambda: store.put_evaluation("counter", key, {}),
    ):
        with pytest.raises(ValueError, match="key"):
            write()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("judge", ["..", "../x", "", "a/b", "a\n"])
def test_judges_name_no_other_folder(judge: str, tmp_path: Path) -> None:
    """A judge's name is a folder of the output."""
    with pytest.raises(ValueError, match="judge"):
        Store(str(tmp_path / "out")).put_evaluation(judge, KEY, {"count_accuracy": 1.0})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- prompts are text ---


def test_prompts_are_not_expanded(tiny_job: Callable[..., JobConfig], tmp_path: Path) -> None:
    """`${…}` in a prompt, or in a column of its own, is in the row as it was in the set."""
    make_prompts([{"prompt": EXPANDABLE, "negative_prompt": EXPANDABLE, "note": EXPANDABLE}], f"{tmp_path}/set.parquet")
    prepared = prepare(tiny_job(f"prompts={tmp_path}/set.parquet", "strategies=[baseline]"))
    [task] = tasks_of(prepared)
    clip = Clip(np.zeros((1, 1, 1, 3), np.uint8), b"", timings={})
    row = row_of(prepared, task, clip, None, retries=0) | {"file_name": "a.mp4", "video_sha256": "ab"}
    store = Store(str(tmp_path / "out"))
    store.commit(row)
    [kept] = store.rows().to_pylist()
    assert kept["prompt"] == kept["negative_prompt"] == kept["note"] == EXPANDABLE
    assert [target["noun"] for target in kept["targets"]] == ["circles"]


@pytest.mark.parametrize("by_verb", [True, False])
def test_a_single_prompt_is_not_expanded(by_verb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`numina generate` and the Python call hand it on as it is."""
    heard = []

    def generate(model: object, prompt: str, **settings: object) -> None:
        heard.append(prompt)
        raise InputError("enough")

    monkeypatch.setattr(cluster.api, "generate_clip", generate)
    ask: Callable[[], object] = partial(cluster.api.generate, EXPANDABLE, overrides=TINY)
    if by_verb:
        ask = partial(CliRunner().invoke, app, ["generate", EXPANDABLE, *TINY], catch_exceptions=False)
    with pytest.raises(InputError, match="enough"):
        ask()
    assert heard == [EXPANDABLE]


HOSTILE = "<script>alert(1)</script> three red circles\"'> <img src=x onerror=alert(2)> [red]{{ 7*7 }}[/red]"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An output whose prompt, id-less row, failure and column hold markup."""
    store = Store(str(tmp_path / "out"))
    store.open_run({"steps": 1})
    name, digest = store.put_video(KEY, b"no video")
    row = {"prompt": HOSTILE, "targets": [{"noun": "circles", "count": 3}], "strategy": "baseline", "seed": 0}
    store.commit(row | {"key": KEY, "file_name": name, "video_sha256": digest, "model": HOSTILE})
    store.fail("f" * 32, {"prompt": HOSTILE, "error": HOSTILE})
    return tmp_path / "out"


class Document(HTMLParser):
    """A page's elements and its text outside of scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.handlers: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def test_markup_in_a_prompt_is_text_of_the_report(hostile: Path) -> None:
    """One script, the page's own; no element and no handler of a prompt's; the prompt is there to be read."""
    html = build_report(hostile).read_text()
    page = Document(html)
    assert page.tags.count("script") == 2, "the app and the index, by address"
    assert "img" not in page.tags
    assert page.handlers == set()
    assert "alert(1)</script>" not in html
    data = [file.read_text() for file in (hostile / "report").iterdir() if not file.name.startswith(("app", "style"))]
    assert any("alert(1)" in text for text in data), "it is there to be read"
    assert not any("<" in text for text in data)


def test_markup_in_a_prompt_is_text_of_a_table() -> None:
    """Rich's `[red]` colours nothing that others wrote."""
    row = dict.fromkeys(ROW_SCHEMA.names) | {
        "key": KEY,
        "prompt": "[red]two[/red] [link=file:///etc/passwd]cats",
        "strategy": "[bold]x",
        "targets": [{"noun": "[/]cats", "count": 2}],
    }
    verdicts = {KEY: {"detected": [{"noun": "[/]cats", "frames": [2]}], "count_accuracy": 1.0}}
    made = {"[bold]x": outcomes(Strategy(name="[bold]x", base="[bold]x"), [row], verdicts)}
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(count_table(made, verdicts, "[red]out"))
    for text in ("[red]two[/red] [link=file:///etc/passwd]cats", "[bold]x", "[/]cats", "[red]out"):
        assert text in captured.get()


def test_markup_in_a_checked_set_is_printed_as_it_is(tmp_path: Path) -> None:
    """`prompts check` shows prompts and nouns with their brackets."""
    row = {"prompt": "three [red]cats[/red]", "targets": [{"noun": "cats", "count": 3}]}
    make_prompts([row], str(tmp_path / "[bold]set.parquet"))
    shown = CliRunner().invoke(app, ["prompts", "check", str(tmp_path / "[bold]set.parquet")], catch_exceptions=False)
    assert "0: 3 cats  three [red]cats[/red]" in shown.output


# --- secrets ---


def test_an_output_does_not_say_where_it_was(tiny_job: Callable[..., JobConfig], tmp_path: Path) -> None:
    """run.json has what decides the rows: no folder, no URL, so no key or password of one."""
    prepared = prepare(tiny_job("output=s3://me:hush@bucket/out"))
    store = Store(str(tmp_path / "out"))
    store.open_run(prepared.identity(), asked=4)
    kept = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert not any(text in kept for text in ("hush", "s3://", str(tmp_path)))


@pytest.mark.parametrize("verb", ["status", "gc", "prompts check", "report", "evaluate", "run"])
def test_errors_have_no_secret(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What can't be opened is named without its password."""
    url = "nosuch://me:hush@host/out"
    place = [f"prompts={url}", f"output={tmp_path}/out"] if verb == "run" else [url]
    monkeypatch.setattr("sys.argv", ["numina", *verb.split(), *place])
    with pytest.raises(SystemExit) as exit:
        main()
    shown = capsys.readouterr()
    assert exit.value.code == 2
    assert "host/out" in shown.err
    assert "hush" not in shown.err + shown.out


def test_what_is_said_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor do lines that name an output."""
    say("s3://me:hush@bucket/out: 3 [red]prompts")
    assert capsys.readouterr().out == "s3://***@bucket/out: 3 [red]prompts\n"
