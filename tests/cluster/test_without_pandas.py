"""A set with times that Python's types can't hold, where pandas isn't installed: it comes with `dev` alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dataset.store import Store
from cluster.rows import python_rows
from tests.cluster.export.exports import a_row

NANOSECONDS = 1_764_288_000_123_456_789
LATE = 253_433_836_800_000_000 + 387_904  # microseconds: the year 10000
EARLY = NANOSECONDS // 1000 * 1000
DAY_BEYOND = 2**31 - 1

SPANS = [{"stage": "write", "place": "gang-0", "began": 1.0, "seconds": 2.0}]
SHOWN = {
    "at": "2025-11-28T00:00:00.123456789",
    "there": "2025-11-28T01:00:00.123456789+0100",
    "late": "10000-12-31T00:00:00.387904",
    "day": f"{DAY_BEYOND} days since 1970-01-01",
    "took": "1 ns",
    "clock": "00:00:00.000000001",
    "times": ["2025-11-28T00:00:00.123456789"],
    "inside": {"at": "2025-11-28T00:00:00.123456789"},
    "map": [("at", "2025-11-28T00:00:00.123456789")],
    "named": "2025-11-28T00:00:00.123456789",
}


ALL = """
import json, sys
from cluster.cli.app import main
ended = []
for verb in json.loads(sys.argv[1]):
    sys.argv[1:] = verb
    try:
        main()
    except SystemExit as exit:
        ended.append(exit.code or 0)
print(json.dumps(ended))
"""


def columns() -> dict[str, pa.Array]:
    time = pa.timestamp("ns")
    return {
        "at": pa.array([NANOSECONDS], time),
        "there": pa.array([NANOSECONDS], pa.timestamp("ns", "Europe/Berlin")),
        "late": pa.array([LATE], pa.timestamp("us")),
        "day": pa.array([DAY_BEYOND], pa.date32()),
        "took": pa.array([1], pa.duration("ns")),
        "clock": pa.array([1], pa.time64("ns")),
        "times": pa.array([[NANOSECONDS]], pa.list_(time)),
        "inside": pa.array([{"at": NANOSECONDS}], pa.struct([("at", time)])),
        "map": pa.array([[("at", NANOSECONDS)]], pa.map_(pa.string(), time)),
        "named": pa.array([NANOSECONDS], time).dictionary_encode(),
    }


def test_what_python_cannot_hold_is_text() -> None:
    """Nanoseconds and far years, at any depth; what it can hold stays what it was."""
    assert python_rows(pa.table(columns())) == [SHOWN]
    table = pa.table({"at": pa.array([EARLY, None], pa.timestamp("ns")), "n": [1.5, None]})
    assert python_rows(table) == table.cast(pa.schema([("at", pa.timestamp("us")), ("n", pa.float64())])).to_pylist()
    broken = pa.array([b"\xffa"])
    text = pa.StringArray.from_buffers(1, *broken.buffers()[1:])
    assert python_rows(pa.table({"text": text})) == [{"text": "\ufffda"}]
    assert python_rows(pa.table({"n": pa.array([], pa.int8())})) == []


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes, their children included, that find no pandas."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "pandas.py").write_text("raise ModuleNotFoundError('No module named pandas', name='pandas')\n")
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    return {**os.environ, "PYTHONPATH": path}


def test_a_dataset_with_such_times_without_pandas(tmp_path: Path, environment: dict[str, str]) -> None:
    """From the set over its rows, which travel between processes, to verdicts, a report, every export and a trace."""
    prompts, output = tmp_path / "prompts.parquet", tmp_path / "out"
    own = {name: column for name, column in columns().items() if name != "named"}
    pq.write_table(pa.table({"prompt": ["Three red circles."], **own}), prompts)
    commit = (
        "import pickle, sys\n"
        "from cluster.dataset.store import Store\n"
        "from cluster.prompts.promptset import open_prompts\n"
        "from tests.cluster.export.exports import a_row\n"
        "from tests.cluster.test_without_pandas import SPANS\n"
        "prompts = open_prompts(sys.argv[1])\n"
        "[row] = pickle.loads(pickle.dumps([*prompts.parse(20)]))\n"
        "store = Store(sys.argv[2], extra_columns=prompts.extra_columns)\n"
        "store.open_run({'steps': 4})\n"
        "made = a_row(store, 1, row.prompt, 0, 'numina') | {'extra': row.extra, 'spans': SPANS}\n"
        "store.commit(made)\n"
        "try: import pandas\n"
        "except ImportError: print('no pandas')\n"
    )
    assert "no pandas" in run([sys.executable, "-c", commit, str(prompts), str(output)], environment)
    [row] = python_rows(Store(str(output)).rows())
    assert {name: row[name] for name in own} == {name: SHOWN[name] for name in own}

    numina = [sys.executable, "-m", "cluster.cli"]
    dated = tmp_path / "dated.parquet"  # a check refuses years after 9999
    pq.write_table(pq.read_table(prompts).drop_columns(["late", "day"]), dated)
    run([*numina, "prompts", "check", str(dated), "--write", str(tmp_path / "checked.parquet")], environment)
    run([*numina, "status", str(output)], environment)
    run([*numina, "evaluate", str(output)], environment)
    run([*numina, "report", str(output)], environment)
    run([*numina, "trace", str(output), "-o", str(tmp_path / "trace.json")], environment)
    for form in ("hf", "webdataset", "countbench", "vbench"):
        run([*numina, "export", str(output), "--to", form, "-o", str(tmp_path / form)], environment)
    [chunk] = (output / "report").glob("chunk-*.js")
    assert json.dumps(SHOWN["at"]) in chunk.read_text()


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1"])
def test_output_that_is_not_utf8(tmp_path: Path, encoding: str) -> None:
    """Tables, dashes and names: what it can't show is replaced, and every verb goes on; in the C locale, too."""
    store = Store(str(tmp_path / "out_ñ"))
    store.open_run({"steps": 4})
    store.commit(a_row(store, 1, "Three red circles — naïve ones.", 0, "numina") | {"spans": SPANS})
    environment = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    output = str(tmp_path / "out_ñ")
    verbs = [
        ["--help"],
        ["config", "--keys"],
        ["config", "demo", "output=ñ"],
        ["plan", "--config", "demo"],
        ["models", "check", "testbed"],
        ["prompts", "check", "testbed:demo"],
        ["prompts", "check", "scenes:demo"],
        ["status", output],
        ["evaluate", output],
        ["report", output],
        ["trace", output, "-o", str(tmp_path / "é.json")],
        ["export", output, "--to", "hf", "-o", str(tmp_path / "hf")],
        ["gc", output],
        ["status", str(tmp_path / "ü")],
    ]
    # One process for all, which imports what they need once.
    done = subprocess.run([sys.executable, "-c", ALL, json.dumps(verbs)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    *worked, failed = json.loads((done.stdout.splitlines() or [b"[]"])[-1])
    assert worked == [0] * (len(verbs) - 1), done.stderr
    assert (failed, b"Traceback" in done.stderr) == (2, False)
    assert done.stderr.splitlines()[-1].startswith(b"error: ")
