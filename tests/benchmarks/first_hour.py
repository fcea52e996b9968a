"""The first hour with a model, timed: doctor, plan, and a run on Ray, on a random checkpoint in its published layout.

    python -m tests.benchmarks.first_hour --config wan1.3b --folder DIR           (true shape, one GPU, 29 GB of disk)
    python -m tests.benchmarks.first_hour --config wan1.3b --folder DIR --tiny --set generation.height=64 …

Each command is the one that a user types; its output is printed with the seconds that it took. `--set` is for the run.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.layouts import published_folder

PUBLISHED = {
    "wan1.3b": "wan2.1-t2v-1.3b",
    "wan14b": "wan2.1-t2v-14b",
    "wan2.2-5b": "wan2.2-ti2v-5b",
    "cogvideox-5b": "cogvideox-5b",
}
PROMPTS = "prompt\nthree cats and two dogs on a beach\na photo of four red balls\n"


def numina(*words: str, log: Path) -> float:
    """Runs one command, prints it, its output and its seconds; ends with it where it fails."""
    print(f"\n$ numina {' '.join(words)}", flush=True)
    began = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], stdout=file, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - began
    print(log.read_text().rstrip())
    print(f"  exit status {done.returncode} after {seconds:.1f} s", flush=True)
    if done.returncode and words[0] != "doctor":
        raise SystemExit(done.returncode)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(PUBLISHED), default="wan1.3b")
    parser.add_argument("--folder", type=Path, required=True, help="new, for the checkpoint and the output")
    parser.add_argument("--tiny", action="store_true", help="tiny tensors, for machines without a GPU")
    parser.add_argument("--set", nargs="*", default=["generation.steps=6"], help="settings of the run")
    options = parser.parse_args()
    began = time.perf_counter()
    weights = published_folder(PUBLISHED[options.config], options.folder / "model", tiny=options.tiny)
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) / 1e9
    print(f"a random checkpoint of {size:.1f} GB in {time.perf_counter() - began:.0f} s", flush=True)
    asked, prompts, log = (options.folder / name for name in ("prompts.csv", "prompts.parquet", "log"))
    asked.write_text(PROMPTS)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = [f"model.path={weights}", f"prompts={prompts}", f"output={options.folder / 'out'}", *options.set]
    seconds = {
        "plan, without weights": numina("plan", "--config", options.config, "--gpus", "1", log=log),
        "prompts import": numina("prompts", "import", str(asked), str(prompts), log=log),
        "doctor": numina("doctor", "--config", options.config, *settings, log=log),
        "plan": numina("plan", "--config", options.config, *settings, log=log),
        "run": numina("run", "--config", options.config, *settings, log=log),
        "the same again": numina("run", "--config", options.config, *settings, log=log),
        "status": numina("status", str(options.folder / "out"), log=log),
    }
    print()
    for name, took in seconds.items():
        print(f"{name:24} {took:7.1f} s")


if __name__ == "__main__":
    main()
