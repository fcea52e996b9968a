"""What a million prompts cost to make, to import and to check: seconds, and the most memory that was held.

python -m tests.benchmarks.prompt_sets [--rows 1000000]

Each step is a command of its own in a process of its own, timed from its start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

CHECK = "from cluster.prompts.promptset import require_prompts; import sys; print(require_prompts(sys.argv[1], 20))"


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak MiB of one command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def write_text(source: Path, target: Path) -> None:
    """A set's prompts, one a line."""
    with target.open("w") as stream:
        for batch in pq.ParquetFile(source).iter_batches(columns=["prompt"]):
            stream.writelines(f"{prompt}\n" for prompt in batch["prompt"].to_pylist())


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    table = Table(title=f"{rows:,} prompts on {os.cpu_count()} cores", title_justify="left")
    for name in ("step", "seconds", "µs a row", "peak MiB", "MB written"):
        table.add_column(name, justify="left" if name == "step" else "right")
    with tempfile.TemporaryDirectory() as folder:
        made, text, imported = (Path(folder) / name for name in ("made.parquet", "set.txt", "imported.parquet"))
        verb = ("-m", "cluster.cli", "prompts")
        steps = {
            "prompts make": (made, [*verb, "make", str(made), "--world", "captions", "-n", str(rows)]),
            "prompts import, txt": (imported, [*verb, "import", str(text), str(imported)]),
            "the check of a set": (None, ["-c", CHECK, str(imported)]),
        }
        for step, (output, command) in steps.items():
            seconds, peak = measured(*command)
            if output == made:
                write_text(made, text)
            written = f"{output.stat().st_size / 1e6:.1f}" if output else ""
            table.add_row(step, f"{seconds:.1f}", f"{seconds / rows * 1e6:.1f}", f"{peak:.0f}", written)
    Console().print(table)


if __name__ == "__main__":
    main()
