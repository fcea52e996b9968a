"""The command line: every verb on a real, tiny job; errors say what to do and set the exit status."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app, main
from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from numina.errors import InputError
from tests.cluster.conftest import TINY

Job = Callable[..., JobConfig]


def numina(*arguments: str) -> str:
    """A verb's output; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def arguments(job: JobConfig) -> list[str]:
    return [f"prompts={job.prompts}", f"output={job.output}", f"model.path={job.model.path}", *TINY]


def test_plan_says_what_a_job_takes(tiny_job: Job) -> None:
    """Gangs, ranks, tokens and videos, without starting anything."""
    output = numina("plan", "--config", "demo", *arguments(tiny_job()))
    assert "1 × 2 ranks" in output
    assert "80 per clip, 40 per rank" in output
    assert "not measured for this model" in output
    assert not Path(tiny_job().output).exists()


def test_generate_writes_one_mp4(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One prompt, one file, and what was identified."""
    places = [f"model.path={tiny_checkpoint}", *TINY]
    output = numina("generate", "two red circles", "--output", str(tmp_path / "clip.mp4"), "--seed", "3", *places)
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    assert "17 frames, identified counts" in output
    plain = numina("generate", "two red circles", "--plain", "-o", str(tmp_path / "plain.mp4"), *places)
    assert "without NUMINA" in plain


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_an_output_that_is_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """With what is wrong with the place, and not as storage that was lost."""
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("sys.argv", ["numina", "run", "--config", "demo", "limit=1", f"output={tmp_path}/{place}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(rf"output is '{tmp_path}/{place}', .*no folder; give a", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("scale", "status", "said"),
    [("1e30", 1, "the latents have values that aren't finite"), ("nan", 2, "generation.guidance_scale is 'nan'")],
)
@pytest.mark.parametrize("how", [["--plain"], []], ids=["plain", "numina"])
def test_generate_writes_no_broken_clip(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: list[str],
    scale: str,
    status: int,
    said: str,
) -> None:
    """A clip without numbers ends with its reason, a setting that is no number is refused; no file in either case."""
    file = tmp_path / "clip.mp4"
    given = [f"model.path={tiny_checkpoint}", *TINY, f"generation.guidance_scale={scale}"]
    monkeypatch.setattr("sys.argv", ["numina", "generate", "two red circles", "-o", str(file), *how, *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert said in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.usefixtures("quick_model")
def test_run_status_evaluate_report(joining_job: Job, tmp_path: Path) -> None:
    """The life of a dataset by its verbs; a second run has nothing to do, one with variants makes their rows only."""
    given, output = [*arguments(joining_job()), "parallel.ulysses=1", "method.guide.add=6"], str(tmp_path / "out")
    assert "4 of 4 videos" in numina("run", "--config", "demo", *given)
    assert "nothing to do" in numina("run", "--config", "demo", *given)
    status = numina("status", output)
    assert "4 done, 0 failed, 0 left of 4" in status
    assert re.search(r"last commit \d+ s ago", status)

    variants = ["variants.grid.guide.add=[6,12]", "parallel.batch=2"]  # 6 is numina itself
    ran = numina("run", "--config", "demo", *given, *variants)
    assert "6 of 6 videos" in ran
    assert "2 generated now" in ran
    assert "6 done, 0 failed, 0 left of 6" in numina("status", output)
    rows = Store(output).rows().to_pylist()
    strategies = {"baseline", "numina", "grid:add=12"}
    assert {(row["id"], row["strategy"]) for row in rows} == set(product(("pair", "single"), strategies))
    assert len({row["config_hash"] for row in rows}) == 3

    table = numina("evaluate", output)
    assert all(f"CountAcc {strategy} − baseline: " in table for strategy in strategies - {"baseline"})
    assert "report.html" in numina("report", output)
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(strategy in page for strategy in strategies)

    assert "6 clips" in numina("trace", output, "-o", str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {row["key"] for row in rows} == {event["args"]["key"] for event in events if event["ph"] == "X"}
    assert {"gang-0", "cpu"} == {event["args"]["name"] for event in events if event["name"] == "process_name"}
    (tmp_path / "out" / "videos" / "00").mkdir(exist_ok=True)
    (tmp_path / "out" / "videos" / "00" / f"{'0' * 32}-{'0' * 16}.mp4").write_bytes(b"of no row")
    assert re.search(r"videos +1 ", numina("gc", output, "--dry-run"))
    assert re.search(r"videos +1 ", numina("gc", output))
    assert re.search(r"videos +0 ", numina("gc", output))
    assert len(Store(output).rows()) == 6


def test_prompts_make_and_check(tmp_path: Path) -> None:
    """A made set checks; its targets can be written out; making it again is refused."""
    made, filled = str(tmp_path / "made.parquet"), str(tmp_path / "filled.parquet")
    assert "12 prompts" in numina("prompts", "make", made, "-n", "12", "--world", "testbed")
    output = numina("prompts", "check", made, "--write", filled)
    assert output.count("background") == 12
    assert "12 rows" in output
    with pytest.raises(InputError, match="exists"):
        numina("prompts", "make", made)


def test_models_check_says_what_is_there(twin: Callable[[str], Path]) -> None:
    """What a folder is, its parts, and what it would run as."""
    output = numina("models", "check", str(twin("wan2.1-1.3b")))
    for words in ("Wan text-to-video", "3 blocks × 4 heads of 16", "stored as F32", "4 frames × 16 × 16 pixels"):
        assert words in output
    assert re.search(r"text_encoder +UMT5EncoderModel +2 ", output)
    assert re.search(r"parallel.ulysses +1, 2, 4\n", re.sub(r" +\n", "\n", output))
    assert "21 × 30 × 52 = 32760 tokens" in output
    assert "memory" not in output  # no shipped config is of this shape
    joint = numina("models", "check", str(twin("cogvideox-5b")))
    assert "CogVideoXDDIMScheduler" in joint
    assert re.search(r"parallel.ulysses +1\n", re.sub(r" +\n", "\n", joint))


def test_models_check_names_the_config_to_start_from() -> None:
    """With its clip and the planner's memory."""
    output = numina("models", "check", "testbed")
    assert "numina plan --config testbed" in output
    assert "5 × 16 × 16 = 1280 tokens" in output
    assert re.search(r"memory +\d\.\d GiB at most on the GPU", output)


def test_models_check_says_all_that_is_wrong(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, with status 2."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    shutil.rmtree(folder / "tokenizer")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    monkeypatch.setattr("sys.argv", ["numina", "models", "check", str(folder)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "its 4 bytes aren't safetensors; download it again" in said
    assert "lacks the part tokenizer/" in said


@pytest.mark.usefixtures("quick_model")
def test_failures_set_the_exit_status(joining_job: Job, tmp_path: Path) -> None:
    """A job with a video that can't be made ends with status 1 and says where the reason is."""
    make_prompts([{"prompt": "three red circles, bug"}], str(tmp_path / "bad.parquet"))
    given = [*arguments(joining_job()), f"prompts={tmp_path}/bad.parquet", "parallel.ulysses=1", "strategies=[numina]"]
    result = CliRunner().invoke(app, ["run", "--config", "demo", *given])
    assert result.exit_code == 1
    assert "0 of 1 videos" in result.output
    assert "/failures" in result.output


@pytest.mark.usefixtures("quick_model")
def test_skipped_rows_are_told_at_the_start_and_at_the_end(joining_job: Job, tmp_path: Path) -> None:
    """They are no failure: the status is 0."""
    make_prompts([{"prompt": "three red circles"}, {"prompt": " "}], str(tmp_path / "bad.parquet"))
    given = [*arguments(joining_job()), f"prompts={tmp_path}/bad.parquet", "parallel.ulysses=1", "strategies=[numina]"]
    result = CliRunner().invoke(app, ["run", "--config", "demo", *given, "prompts_bad=skip"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 rows can't be used and are skipped, see " in result.stderr
    assert "1 of 1 videos" in result.stdout
    assert "1 row of the prompt set skipped" in " ".join(result.stdout.split())


def outcome_of(monkeypatch: pytest.MonkeyPatch, **counts: Any) -> Callable[..., tuple[int, str, str]]:
    """`numina run` of a job that ends with these counts: its status, stdout and stderr."""

    def run_job(plan: object, report: Callable[[JobProgress], None]) -> JobProgress:
        outcome = JobProgress(**counts)
        report(outcome)
        return outcome

    monkeypatch.setattr("cluster.runtime.run.run_job", run_job)

    def run(*given: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["run", "--config", "demo", *given], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.mark.parametrize(
    ("counts", "status", "said"),
    [
        ({"total": 4, "done": 4, "generated": 4, "guided": 1}, 0, "4 generated now (1 guided), 0 failed"),
        ({"total": 4, "done": 4}, 0, "nothing to do"),
        ({"total": 4, "done": 3, "failed": 1}, 1, "add retry_failed=true to try these clips again"),
        (
            {"total": 4, "done": 1, "failed": 1, "draining": True},
            3,
            "stopped with 2 videos left; the same command continues",
        ),
        ({"total": 4, "done": 4, "draining": True}, 0, "4 of 4 videos"),
        ({"total": 4, "done": 3, "failed": 1, "draining": True}, 1, "1 failed"),
    ],
)
def test_the_exit_status_says_how_it_ended(
    counts: dict[str, Any], status: int, said: str, tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 done, 1 something failed, 3 stopped before all was done; the last lines say what to do."""
    exit_code, stdout, _ = outcome_of(monkeypatch, **counts)(*arguments(tiny_job()))
    assert exit_code == status
    assert said in stdout


def test_with_json_all_that_is_written_is_objects(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress and summary are lines of the log, too; nothing else is printed."""
    run = outcome_of(monkeypatch, total=4, done=1, failed=1, draining=True)
    status, stdout, stderr = run(*arguments(tiny_job()), "cluster.log_format=json")
    assert (status, stdout) == (3, "")
    messages = [json.loads(line)["message"] for line in stderr.splitlines()]
    assert messages[-3].startswith("1 of 4 videos in ")
    assert messages[-1] == "stopped with 2 videos left; the same command continues"


def test_with_json_an_error_is_an_object(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the moment on that the job's log format is known."""
    given = [*arguments(tiny_job()), "cluster.log_format=json", "prompts=/nowhere"]
    monkeypatch.setattr("sys.argv", ["numina", "run", "--config", "demo", *given])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "ERROR"
    assert "/nowhere" in json.loads(line)["message"]


def test_a_clean_up_needs_an_output(tmp_path: Path) -> None:
    """A folder that no job wrote to is left alone."""
    (tmp_path / "videos").mkdir()
    with pytest.raises(InputError, match=r"has no run\.json"):
        numina("gc", str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == ["videos"]


@pytest.mark.parametrize("place", ["nowhere", "empty", "file.mp4", "deep/er/nowhere"])
@pytest.mark.parametrize("verb", ["status", "report", "evaluate", "trace", "gc", "export"])
def test_an_output_that_is_not_there_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    place: str,
) -> None:
    """A typing error in its name: status 2, and nothing is made."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.mp4").write_bytes(b"a clip")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["numina", verb, place, *(["--to", "hf", "-o", "to"] * (verb == "export"))])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert re.search(
        r"error: .* has no run\.json.*; give an output|error: .* has no run\.json.*: give the folder",
        capsys.readouterr().err,
    )
    assert sorted(tmp_path.rglob("*")) == before


MADE = r"must end in \.(mp4|json|html|parquet)|is a folder|is no folder|than or equal to|range"


@pytest.mark.parametrize(
    ("verb", "places"),
    [
        (
            "generate 'two cats' model.path=nowhere -o",
            [".", "made", "clip.gif", "clip", "made/", ".mp4", "file/clip.mp4"],
        ),
        ("generate 'two cats' model.path=nowhere --seed", ["-1", "9223372036854775808", "1" + "0" * 30]),
        ("trace nowhere -o", [".", "a.txt", "file/a.json", "folder.json"]),
        ("report nowhere -o", [".", "a.htm", "file/a.html", "folder.html", "file.html"]),
        ("prompts make", [".", "a.csv", "file/a.parquet", "folder.parquet"]),
        ("prompts enhance nowhere", [".", "a.csv", "file/a.parquet"]),
        ("prompts import nowhere", [".", "a.csv", "file/a.parquet"]),
        ("prompts check nowhere --write", [".", "a.csv", "file/a.parquet"]),
        ("prompts make a.parquet --seed", ["-1", "9223372036854775808"]),
        ("testbed train --seed 0 -o", ["file", "file/folder"]),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, places: list[str]
) -> None:
    """Status 2 before anything is read, loaded or made: what else is wrong here isn't found."""
    for folder in ("made", "folder.json", "folder.html", "folder.parquet"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("something")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for place in places:
        result = CliRunner().invoke(app, [*shlex.split(verb), place])
        said = f"{result.output} {result.exception}"
        assert result.exit_code == 2 or isinstance(result.exception, InputError), (place, said)
        assert re.search(MADE, said), (place, said)
        assert sorted(tmp_path.rglob("*")) == before


def test_folders_above_are_made(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Those of a clip, whose making takes long."""
    clip = tmp_path / "new" / "er" / "clip.mp4"
    numina("generate", "two red circles", "--plain", "-o", str(clip), f"model.path={tiny_checkpoint}", *TINY)
    assert clip.stat().st_size > 1000


def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback: the value, the rule, the remedy."""
    monkeypatch.setattr("sys.argv", ["numina", "plan", "--config", "demo", "generation.steps=0"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err.strip() == "error: generation.steps is 0; at least one step is needed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_no_job_drains(tmp_path: Path, number: signal.Signals) -> None:
    """Ends with status 3 and what to do; temporary files are removed."""
    prompts, temporary = str(tmp_path / "prompts.parquet"), tmp_path / "tmp"
    make_prompts([{"prompt": f"{count} red circles"} for count in range(2, 9)] * 3000, prompts)
    temporary.mkdir()
    command = ["calibrate", "--config", "demo", "budget=9", f"prompts={prompts}", f"output={tmp_path}/out"]
    running = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *command, "variants.fused.preset=fused"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # In the background of a shell SIGINT is ignored, by children too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not any(temporary.glob("numina-*")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    assert (running.returncode, list(temporary.glob("numina-*"))) == (3, []), said
    assert said.splitlines()[-1] == "stopped before it was done; give the same command again"


def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence, before a library of the hub reads the variable."""
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    monkeypatch.setattr("sys.argv", ["numina", "config", "--keys"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: HF_ENDPOINT isn't a URL (Invalid IPv6 URL); give one such as")
