"""`numina prompts enhance`: a column of enhanced prompts; a model's answers are checked, kept, not asked for again."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.check import check_prompts
from cluster.prompts.write import make_prompts
from numina.errors import InputError, ModelError, NuminaError
from numina.prompts.targets import parse_targets
from pipelines.rewriting.llm import LocalWriter, cleaned
from pipelines.rewriting.rules import enhance_prompt
from tests.cluster.prompts.endpoint import KEY, Endpoint

PROMPTS = [f"{word} cats and two dogs beside a lake" for word in ("one", "three", "four", "five", "six", "seven")]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Six prompts, with a column of their own."""
    rows = [{"id": f"{number:03d}", "prompt": prompt, "source": "own"} for number, prompt in enumerate(PROMPTS, 1)]
    make_prompts(rows, str(tmp_path / "set.parquet"))
    return str(tmp_path / "set.parquet")


def asked_prompt(messages: list[dict[str, str]]) -> str:
    return messages[1]["content"].splitlines()[0].removeprefix("Prompt: ")


def enhance(prompts: str, output: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["prompts", "enhance", prompts, str(output), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output).to_pylist()


def test_by_rule(prompts: str, tmp_path: Path) -> None:
    """All rows and columns of the set, and two more; a set that checks; the same again is fine."""
    for _ in range(2):
        assert "6 prompts; 6 by rules" in enhance(prompts, tmp_path / "out.parquet")
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["enhanced_prompt"] for row in rows] == [enhance_prompt(p, parse_targets(p)) for p in PROMPTS]
    assert [(row["prompt"], row["source"], row["enhanced_by"]) for row in rows] == [
        (p, "own", "rules") for p in PROMPTS
    ]
    assert check_prompts(str(tmp_path / "out.parquet"), 20) == (6, [])
    enhance(str(tmp_path / "out.parquet"), tmp_path / "again.parquet")
    assert rows_of(tmp_path / "again.parquet") == rows


def test_by_the_embedded_models_rule(tmp_path: Path) -> None:
    """Its own words."""
    make_prompts([{"prompt": "a red circle moving on a grey background"}], str(tmp_path / "set.parquet"))
    enhance(str(tmp_path / "set.parquet"), tmp_path / "out.parquet", "--with", "testbed")
    [row] = rows_of(tmp_path / "out.parquet")
    assert row["enhanced_prompt"] == "one red circle moving on a grey background and 1 red circle"
    assert row["enhanced_by"] == "testbed"


def test_an_endpoints_answers(prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint]) -> None:
    """Good ones are taken, without thoughts and quotes; bad ones are asked for once more, then the rule writes."""

    def answer(messages: list[dict[str, str]]) -> str | int:
        prompt = asked_prompt(messages)
        if prompt.startswith("six"):
            return 400  # a refusal of this one alone
        if prompt.startswith("seven") or (prompt.startswith("three") and len(messages) == 2):
            return "Some cats and dogs."
        return f'<think>three owls?</think>\n"A clear view of {prompt},\n all apart"'

    server = endpoint(answer)
    options = ["--with", "endpoint", "--url", server.url, "--model", "tiny"]
    assert "4 by endpoint, 2 by rules" in enhance(prompts, tmp_path / "out.parquet", *options)
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["enhanced_by"] for row in rows] == ["endpoint"] * 4 + ["rules"] * 2
    assert rows[0]["enhanced_prompt"] == "A clear view of one cats and two dogs beside a lake, all apart"
    assert rows[5]["enhanced_prompt"] == enhance_prompt(PROMPTS[5], parse_targets(PROMPTS[5]))
    assert len(server.asked) == 8  # two of them twice
    assert {body["model"] for body in server.asked} == {"tiny"}
    assert server.keys == {f"Bearer {KEY}"}
    again = enhance(prompts, tmp_path / "out.parquet", *options)
    assert "4 by endpoint, 2 by rules" in again
    assert len(server.asked) == 8
    assert KEY not in again + (tmp_path / "out.parquet.answers.jsonl").read_text()


def test_an_endpoint_that_dies_midway(
    prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answered is kept, no set is written, and the same command asks only for the rest."""
    monkeypatch.setattr("pipelines.rewriting.llm.RETRIES", 0)
    answered = threading.Semaphore(3)

    def dying(messages: list[dict[str, str]]) -> str | int:
        return f"Exactly {asked_prompt(messages)}" if answered.acquire(blocking=False) else 503

    first, output = endpoint(dying), tmp_path / "out.parquet"
    options = ["--with", "endpoint", "--model", "tiny", "--at-once", "1"]
    with pytest.raises(NuminaError, match=r"doesn't answer.*the same command continues") as error:
        enhance(prompts, output, *options, "--url", first.url)
    assert KEY not in str(error.value)
    assert not output.exists()
    kept = tmp_path / "out.parquet.answers.jsonl"
    assert len(kept.read_text().splitlines()) == 3
    with kept.open("a") as half:
        half.write('{"row": "12')  # as a killed command leaves it
    second = endpoint(lambda messages: f"Now {asked_prompt(messages)}")
    enhance(prompts, output, *options, "--url", second.url)
    assert len(second.asked) == 3
    told = [row["enhanced_prompt"].split()[0] for row in rows_of(output)]
    assert told == ["Exactly"] * 3 + ["Now"] * 3
    assert len(kept.read_text().splitlines()) == 6


def test_an_endpoint_that_refuses_the_key(prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint]) -> None:
    """Nothing is written in its place: the error says what to check, and not the key."""
    server = endpoint(lambda messages: 401)
    with pytest.raises(InputError, match="check --url, --model and OPENAI_API_KEY") as error:
        enhance(prompts, tmp_path / "out.parquet", "--with", "endpoint", "--url", server.url, "--model", "x")
    assert KEY not in str(error.value)
    assert not (tmp_path / "out.parquet").exists()


def test_a_local_models_gibberish_is_not_taken(prompts: str, tmp_path: Path, random_model: Path) -> None:
    """It is really asked, what it says fails the check, and the rule writes."""
    assert LocalWriter(folder=str(random_model)).answer([{"role": "user", "content": "three cats"}])
    told = enhance(prompts, tmp_path / "out.parquet", "--with", "local", "--model", str(random_model))
    assert "6 prompts; 6 by rules" in told
    kept = [json.loads(line) for line in (tmp_path / "out.parquet.answers.jsonl").read_text().splitlines()]
    assert {line["enhanced_by"] for line in kept} == {"rules"}


def test_a_local_model_of_pickles_is_refused(tmp_path: Path, random_model: Path) -> None:
    """Only safetensors are read."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickles"
    folder.mkdir()
    for file in random_model.iterdir():
        if file.suffix == ".safetensors":
            torch.save(load_file(file), folder / "pytorch_model.bin")
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="safetensors"):
        LocalWriter(folder=str(folder)).answer([{"role": "user", "content": "three cats"}])


def test_what_is_missing_is_told(prompts: str, tmp_path: Path) -> None:
    """Options of a way that isn't chosen, a folder that is none, a place where answers can't be kept."""
    for options, told in (
        (["--with", "endpoint"], "--with endpoint needs --url"),
        (["--with", "local"], "--with local needs --model"),
        (["--with", "local", "--model", str(tmp_path)], r"has no config\.json"),
    ):
        with pytest.raises(InputError, match=told):
            enhance(prompts, tmp_path / "out.parquet", *options)
    (tmp_path / "out.parquet.answers.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="correct it, or remove it to ask again"):
        enhance(prompts, tmp_path / "out.parquet", "--with", "endpoint", "--url", "http://127.0.0.1:9", "--model", "x")


def test_cleaned_answers() -> None:
    """One line of text."""
    assert cleaned(" “Three cats,\n\n two dogs.” ") == "Three cats, two dogs."
    assert cleaned("<think>\nlong\n</think>```\nthree cats\n```") == "three cats"
