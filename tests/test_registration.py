"""One file and one entry each: a model family, a judge, an export format, a prompt source and a verb that only this
test knows are registered, and run."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from diffusers import WanPipeline
from typer.testing import CliRunner

from cluster.cli.app import VERBS, commands
from cluster.dataset.store import Store
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report, Video, copy_videos
from cluster.export.formats import FORMATS, Format
from cluster.export.selection import Selection
from cluster.prompts.check import read_prompts
from cluster.prompts.source_rows import SourceRow, line_id
from cluster.prompts.sources import SOURCES, Source
from cluster.prompts.text_files import read_lines
from cluster.storage.protocol import Files
from numina.errors import ConfigError, InputError, ModelError
from numina.prompts.targets import Target
from pipelines.judges import Case, JudgeConfig, Judgement
from pipelines.judges.registry import JUDGES, JudgeKind
from pipelines.models.families import FAMILIES
from pipelines.models.registry import inspect_model
from pipelines.models.wan import WanModel
from pipelines.parallel.support import Lacks
from pipelines.video.mp4 import decode_mp4
from tests import twins
from tests.cluster.conftest import TINY
from tests.cluster.export.exports import an_output

HERE = __name__


def numina(*arguments: str) -> str:
    """A verb's output; its errors are raised."""
    result = CliRunner().invoke(commands(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# --- a verb ---


def count_letters(word: str) -> None:
    """Say how long a word is."""
    typer.echo(f"{len(word)} letters")


def test_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the help, and runs."""
    monkeypatch.setitem(VERBS["Look at results"], "letters", f"{HERE}:count_letters")
    assert "Say how long a word is." in numina("--help")
    assert numina("letters", "numina") == "6 letters\n"


def test_help_loads_neither_torch_nor_ray() -> None:
    """All verbs are listed in a moment."""
    shown = "from typer.testing import CliRunner; from cluster.cli.app import app; CliRunner().invoke(app, ['--help'])"
    code = f"{shown}; import sys; print(sorted({{'torch', 'ray', 'pyarrow', 'omegaconf', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a judge ---


class BrightnessJudge:
    """Counts one of each noun in a bright frame, none in a dark one."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": self.config.kind, "every": self.config.every}

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        every = self.config.every
        return [
            Judgement(detected=np.array([[int(frame.mean() > 0)] * len(case.targets) for frame in case.video[::every]]))
            for case in cases
        ]


def refuse_owls(prompt: str, targets: Sequence[Target]) -> None:
    if "owls" in {target.noun for target in targets}:
        raise InputError("owls aren't known")


def test_a_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`numina evaluate` judges an output by it; a job that verifies by it is told before it starts what it can't do."""
    kind = JudgeKind(judge=f"{HERE}:BrightnessJudge", check_nouns=f"{HERE}:refuse_owls")
    monkeypatch.setitem(JUDGES, "brightness", kind)
    (tmp_path / "bright.yaml").write_text("kind: brightness\nname: bright\n")
    store = an_output(tmp_path / "out", samples=1)
    said = numina("evaluate", str(tmp_path / "out"), "every=2", "--judge", str(tmp_path / "bright.yaml"))
    assert "judged by bright" in said
    verdicts = store.evaluations("bright").to_pylist()
    assert len(verdicts) == 6
    assert all(set(noun["frames"]) == {1} for verdict in verdicts for noun in verdict["detected"])
    (tmp_path / "set.jsonl").write_text('{"prompt": "four owls in a tree"}\n')
    numina("prompts", "import", str(tmp_path / "set.jsonl"), str(tmp_path / "set.parquet"))
    job = ["strategies=[numina+verified]", f"verify.judge={tmp_path}/bright.yaml", f"prompts={tmp_path}/set.parquet"]
    with pytest.raises(InputError, match="owls aren't known"):
        numina("plan", *job)
    with pytest.raises(ConfigError, match="the brightness has no weights"):
        numina("evaluate", str(tmp_path / "out"), "path=/models", "--judge", str(tmp_path / "bright.yaml"))


# --- an export format ---


def write_digests(store: Store, files: Files, selection: Selection, config: ExportConfig, report: Report) -> Exported:
    """Each clip under its own digest."""
    rows = selection.rows.to_pylist()
    videos = [
        Video(source=row["file_name"], name=f"{row['video_sha256']}.mp4", sha256=row["video_sha256"]) for row in rows
    ]
    lost = copy_videos(store, files, videos, report)
    return Exported(clips=len(rows) - len(lost), lost=lost)


def test_an_export_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`numina export --to` writes it, of one strategy where it takes one clip of a prompt, and records its settings."""
    form = Format(write=f"{HERE}:write_digests", one_clip=True, settings=("license",))
    monkeypatch.setitem(FORMATS, "digests", form)
    an_output(tmp_path / "out", samples=1)
    to = ["export", str(tmp_path / "out"), "--to", "digests", "-o", str(tmp_path / "digests")]
    with pytest.raises(InputError, match="digests takes one clip of each prompt"):
        numina(*to)
    assert "3 clips as digests, 0 left out" in numina(*to, "--strategy", "numina")
    for file in (tmp_path / "digests").glob("*.mp4"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    assert json.loads((tmp_path / "digests" / "export.json").read_text())["license"] == "other"
    with pytest.raises(InputError, match=r"choose from .*, digests"):
        numina("export", str(tmp_path / "out"), "--to", "nothing", "-o", str(tmp_path / "other"))


# --- a prompt source ---


def read_list(path: str) -> Iterator[SourceRow]:
    """A prompt, a tab, a seed."""
    for number, text, _ in read_lines(path):
        prompt, _, seed = text.partition("\t")
        yield SourceRow(line=number, values={"id": line_id(number), "prompt": prompt, "seed": int(seed)})


def test_a_prompt_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`numina prompts import` reads it, with all its columns."""
    (tmp_path / "set.list").write_text("three cats\t5\na dog and two owls\t6\n")
    into = ["prompts", "import", str(tmp_path / "set.list"), str(tmp_path / "set.parquet")]
    with pytest.raises(InputError, match="none of txt, csv"):
        numina(*into)
    monkeypatch.setitem(SOURCES, "list", Source(read=f"{HERE}:read_list"))
    assert "2 prompts" in numina(*into)
    assert [(row.id, row.prompt, row.seed) for row in read_prompts(str(tmp_path / "set.parquet"), max_count=20)] == [
        ("001", "three cats", 5),
        ("002", "a dog and two owls", 6),
    ]


# --- a model family ---


class SwanPipeline(WanPipeline):  # type: ignore[misc]
    """Of a class that no family shipped knows."""


class SwanModel(WanModel):
    """Its adapter."""

    kinds = replace(WanModel.kinds, pipeline=SwanPipeline)


SWAN = replace(
    FAMILIES["WanPipeline"],
    title="Swan text-to-video",
    adapter=f"{HERE}:SwanModel",
    text_tokens=20,
    lacks=Lacks(split="Swans swim alone", magcache="nobody has measured swans"),
    shipped={(3, 4): "testbed"},
    decoder_width=lambda vae: 7,
    decoder_numbers={7: 1000},
)


@pytest.fixture(scope="module")
def swan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the family."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("family") / "swan"
    SwanPipeline(**twins.wan21().components).save_pretrained(folder)
    return folder


def test_a_model_family(swan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is inspected, checked, planned, held to what it can't do, and generates; unregistered it is refused."""
    with pytest.raises(ModelError, match="'SwanPipeline'; supported are WanPipeline"):
        inspect_model(str(swan))
    monkeypatch.setitem(FAMILIES, "SwanPipeline", SWAN)
    facts = inspect_model(str(swan))
    assert (facts.family, facts.depth, facts.heads, facts.large_shift) == ("SwanPipeline", 3, 4, 5.0)

    checked = numina("models", "check", str(swan))
    for words in ("Swan text-to-video", "20 tokens", "--config testbed"):
        assert words in checked

    job = [f"model.path={swan}", *TINY[:3]]
    planned = numina("plan", "--gpus", "2", *job)
    assert "1: parallel.gangs=2" in planned.replace("as configured", "parallel.gangs=2")
    with pytest.raises(ConfigError, match="Swans swim alone"):
        numina("plan", "--gpus", "2", *job, "parallel.ulysses=2")
    with pytest.raises(ConfigError, match="nobody has measured swans"):
        numina("plan", *job, "generation.cache=magcache", "parallel.ulysses=1")

    clip = tmp_path / "clip.mp4"
    places = ["--config", "demo", *job, "model.device=cpu", "parallel.ulysses=1"]
    assert "17 frames" in numina("generate", "two red circles", "-o", str(clip), *places)
    assert decode_mp4(clip.read_bytes()).shape == (17, 64, 64, 3)
