"""What a million prompts cost to make, to import and to check: seconds, and the most memory that was held.

python -m tests.benchmarks.prompt_sets [--rows 1000000]

Each step is a command of its own in a process of its own, timed from its start. The checks' prompts a second are of
CPU time: reading Parquet, each row's targets, what repeats; with `--write`, the written set as well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

LONG = 684  # characters: as long as captions of today's video datasets
LONG_SHARE = 20  # of so many rows one is checked again, in a set of long prompts


def measured(*command: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPUs and peak MiB of one command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_text(source: Path, target: Path) -> None:
    """A set's prompts, one a line."""
    with target.open("w") as stream:
        for batch in pq.ParquetFile(source).iter_batches(columns=["prompt"]):
            stream.writelines(f"{prompt}\n" for prompt in batch["prompt"].to_pylist())


def write_long(source: Path, target: Path, rows: int) -> None:
    """A set whose prompts are several of another's, one after the other; each ends in its number."""
    prompts = iter(pq.read_table(source, columns=["prompt"])["prompt"].to_pylist() * (LONG // 30))
    long = []
    for row in range(rows):
        text = f"Take {row}."
        while len(text) < LONG - 40:
            text += f" {next(prompts)}"
        long.append(text[:LONG])
    pq.write_table(pa.table({"prompt": long}), target)


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    table = Table(title=f"{rows:,} prompts on {os.cpu_count()} cores", title_justify="left")
    for name in ("step", "rows", "seconds", "µs a row", "rows per CPU second", "peak MiB", "MB written"):
        table.add_column(name, justify="left" if name == "step" else "right")
    with tempfile.TemporaryDirectory() as folder:
        names = ("made.parquet", "set.txt", "imported.parquet", "bare.parquet", "long.parquet", "checked.parquet")
        made, text, imported, bare, long, checked = (Path(folder) / name for name in names)
        few = max(1, rows // LONG_SHARE)
        verb = ("-m", "cluster.cli", "prompts")
        steps = {
            "prompts make": (rows, made, [*verb, "make", str(made), "--world", "captions", "-n", str(rows)]),
            "prompts import, txt": (rows, imported, [*verb, "import", str(text), str(imported)]),
            "prompts check, targets given": (rows, None, [*verb, "check", str(imported)]),
            "prompts check, targets read": (rows, None, [*verb, "check", str(bare)]),
            "prompts check --write": (rows, checked, [*verb, "check", str(bare), "--write", str(checked)]),
            f"prompts check, {LONG} characters": (few, None, [*verb, "check", str(long)]),
        }
        for step, (number, output, command) in steps.items():
            seconds, busy, peak = measured(*command)
            if output == made:
                write_text(made, text)
                pq.write_table(pq.read_table(made, columns=["prompt"]), bare)
                write_long(made, long, few)
            written = f"{output.stat().st_size / 1e6:.1f}" if output else ""
            rates = f"{seconds / number * 1e6:.1f}", f"{number / busy:,.0f}"
            table.add_row(step, f"{number:,}", f"{seconds:.1f}", *rates, f"{peak:.0f}", written)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
