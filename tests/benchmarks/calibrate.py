"""How far the race of `numina calibrate` falls behind the best candidate of a full study.

    python -m tests.benchmarks.calibrate collect TABLE.jsonl --prompts 24     the study: all candidates on all prompts
    python -m tests.benchmarks.calibrate race TABLE.jsonl --clips 60          races over prompts drawn from it

`collect` appends after every prompt and continues where it ended. A line: prompt, candidate, CountAcc. `race` draws
prompts with replacement, races as the verb does, and prints the mean regret: the best candidate's CountAcc of the whole
table less that of the race's choice.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from cluster.job.config import load_job
from pipelines.models.registry import load_model
from tests.benchmarks.counting import Bench, shares

PLAIN = "baseline"


def collect(table: Path, prompts: int, seed: int, steps: int) -> None:
    """All candidates' CountAcc on prompts of the embedded model's held-out kind, a prompt at a time, on the CPU."""
    torch.set_num_threads(1)
    size = ["generation.height=128", "generation.width=128", "generation.num_frames=17", "generation.guidance_scale=3"]
    job = load_job("calibrate/candidates", [*size, f"generation.steps={steps}", "strategies=[baseline,numina]"])
    job = replace(job, variants={name: own for name, own in job.variants.items() if name != "closed"})  # the job's own
    model = load_model(job.model.path, dtype=job.model.dtype, device="cpu")
    done = {(line["seed"], line["prompt"]) for line in lines_of(table)}
    for item in shares(prompts, 1, seed, 1)[0]:
        if (seed, item.number) in done:
            continue
        found = [
            {"seed": seed, "prompt": item.number, "candidate": name, "accuracy": result.accuracy}
            for result in Bench(model, job, [item], 0).results()
            for name in [PLAIN if result.variant == "plain" else result.variant]
        ]
        with table.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in found)


def lines_of(table: Path) -> list[dict]:
    """What a table has."""
    return [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "race"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=2000, help="of the prompts")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    if options.what == "collect":
        collect(options.table, options.prompts, options.seed, options.steps)


if __name__ == "__main__":
    main()
