"""The command line with any words: done, or refused with what was wrong; never a traceback, never half a file.

Verbs that start no Ray, on a small output.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tests.cluster.export.exports import an_output
from tests.faults.fuzzing import bounded, entries, names_one_of, run

WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            "0",
            "-1",
            "1e30",
            "nan",
            "inf",
            "007",
            "no",
            "null",
            "~",
            "1:30",
            "20261128_120000",
            "a b",
            "ü",
            "x#y",
        ),
        *("[", "]", "[]", "{}", "{a: 1}", "${x}", "*", "../x", "/", "/dev/null", "/nowhere/x", "s3://", "nosuchfs://x"),
        *(
            "\\",
            "'",
            '"',
            "%",
            "=",
            "a=b",
            "a\nb",
            "x" * 300,
            "1,2",
            "1-",
            "3-1",
            "99999999999999999999",
            "😀",
            "\ud800",
        ),
    ]
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of a few clips that no command of these tests changes, but for verdicts' summaries."""
    root = tmp_path_factory.mktemp("fuzz") / "out"
    an_output(root)
    return root


def options(draw: Callable[..., Any], **known: st.SearchStrategy[str]) -> list[str]:
    """Some of a verb's options with any values."""
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=3))
    return [word for name in chosen for word in (f"--{name}", draw(known[name]))]


def check_refusal(status: int, said: str, given_words: list[str]) -> None:
    """Wrong input is named: a word that was given, or the option or key that it was given for."""
    if status == 2:
        parts = [part for word in given_words for part in (word.strip("-"), repr(word), word.partition("=")[0])]
        assert names_one_of(said, parts), (given_words, said)


NUMBER = WORDS | st.sampled_from(["1", "2", "5", "1-3", "2,4"])


@bounded(40)
@given(st.data())
def test_prompts_make(data: st.DataObject) -> None:
    """A whole set or none."""
    with tempfile.TemporaryDirectory() as folder:
        words = options(
            data.draw,
            **dict.fromkeys(("number", "seed", "counts", "per-prompt"), NUMBER),
            nouns=WORDS | st.sampled_from(["cat,dog", "cat"]),
            templates=WORDS,
            world=WORDS | st.sampled_from(["captions", "testbed", "scenes"]),
        )
        made = f"{folder}/set.parquet"
        status, said = run("prompts", "make", made, *words)
        event(f"make {status}")
        assert entries(Path(folder)) == ({"set.parquet"} if status == 0 else set())
        check_refusal(status, said, words)
        if status == 0:
            assert run("prompts", "check", made, "--max-count", "1000000")[0] == 0


@bounded(40)
@given(st.data())
def test_verbs_that_look_at_an_output(output: Path, data: st.DataObject) -> None:
    """Of an output that is there, and of anything else; the output's rows and clips stay as they are."""
    place = data.draw(st.sampled_from([str(output)] * 3) | WORDS)
    verb = data.draw(st.sampled_from(["status", "evaluate", "report"]))
    known: dict[str, dict[str, st.SearchStrategy[str]]] = {
        "status": {},
        "evaluate": {"judge": WORDS | st.just("counter"), "against": WORDS},
        "report": {"output": WORDS | st.just("page.html")},
    }
    words = [place, *(options(data.draw, **known[verb]) if known[verb] else [])]
    before = {name for name in entries(output) if name.startswith(("commits", "videos", "segments"))}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status, said = run(verb, *words)
        event(f"{verb} {status}")
        check_refusal(status, said, [*words, folder])  # '' is the folder that it runs in
        assert place == str(output) or not [name for name in entries(Path(folder)) if name.endswith((".part", ".tmp"))]
    assert {name for name in entries(output) if name.startswith(("commits", "videos", "segments"))} == before


@bounded(40)
@given(st.data())
def test_export(output: Path, data: st.DataObject) -> None:
    """A whole export or none."""
    words = options(
        data.draw,
        strategy=WORDS | st.sampled_from(["numina", "baseline"]),
        judge=WORDS | st.just("counter"),
        only=WORDS | st.sampled_from(["judged", "accepted"]),
        license=WORDS,
        **{"shard-clips": NUMBER},
    )
    form = data.draw(st.sampled_from(["hf", "webdataset", "countbench", "vbench"]) | WORDS)
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/export"
        status, said = run("export", str(output), "--to", form, "-o", place, *words)
        event(f"export {status}")
        check_refusal(status, said, ["--to", form, *words])
        if status == 2:
            assert not Path(place).exists() or not entries(Path(place))
        shutil.rmtree(place, ignore_errors=True)


KEYS = st.sampled_from(
    [
        *(
            "prompts",
            "output",
            "limit",
            "samples",
            "seed",
            "strategies",
            "shard",
            "max_count",
            "negative_prompt",
            "latents",
        ),
        *(
            "generation.steps",
            "generation.guidance_scale",
            "generation.width",
            "generation.negative_prompt",
            "model.path",
        ),
        *("method", "method.identify", "variants", "variants.a.identify.cache", "parallel.ulysses", "cluster.address"),
        *(
            "strategies[0]",
            "nosuch",
            "generation.nosuch",
            "a..b",
            "",
            ".",
            "prompts.x",
            "cluster.grace",
            "memory.shard",
        ),
    ]
)


@bounded(60)
@given(st.lists(st.tuples(KEYS, WORDS), max_size=3), st.sampled_from(["config", "plan"]))
def test_overrides(pairs: list[tuple[str, str]], verb: str) -> None:
    """Any key with any value: resolved, or refused; nothing is started or written."""
    words = [f"{key}={value}" for key, value in pairs]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status, said = run(*(["config", "demo"] if verb == "config" else ["plan", "--config", "demo"]), *words)
        event(f"{verb} {status}")
        assert status in (0, 2), said
        assert said.strip(), "whatever is refused is said"
        assert entries(Path(folder)) == set()


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000 + "x", "a\x00b"])
def test_names_that_no_file_can_have(output: Path, tmp_path: Path, name: str) -> None:
    """Found by the above: too long, or with a null byte, wherever a path is given."""
    commands = [
        ["prompts", "make", str(tmp_path / "set.parquet"), "--nouns", name],
        ["prompts", "make", str(tmp_path / "set.parquet"), "--templates", name],
        ["prompts", "make", f"{tmp_path}/{name}"],
        ["prompts", "check", name],
        ["prompts", "import", f"{name}.txt", str(tmp_path / "set.parquet")],
        ["config", name],
        ["status", name],
        ["report", name],
        ["evaluate", str(output), "--judge", name],
        ["evaluate", str(output), "--against", name],
        ["export", name, "--to", "hf", "-o", str(tmp_path / "x")],
        ["export", str(output), "--to", "hf", "-o", f"{tmp_path}/{name}"],
    ]
    for command in commands:
        status, said = run(*command)
        assert status in (1, 2), (command, said)
        assert entries(tmp_path) == set(), command
