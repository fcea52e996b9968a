"""How far the race of `numina calibrate` falls behind the best candidate of a full study.

    python -m tests.benchmarks.calibrate collect TABLE.csv --prompts 60       a study: all candidates on all prompts
    python -m tests.benchmarks.calibrate convert STUDY.jsonl TABLE.csv        of what `counting --output` wrote
    python -m tests.benchmarks.calibrate race TABLE.csv --clips 60 120        races over prompts drawn from a table

A table has a line per prompt and seed, and the CountAcc of each candidate. `collect` continues where it ended. `race`
draws prompts with replacement, races as the verb does, and prints the mean regret: the best candidate's CountAcc of the
whole table less that of the race's choice. `tests/benchmarks/outcomes/` has tables. With `--worse 0 0.1 …` candidates
are mixed from a table: on each prompt the outcome of `numina` or, with that probability, that of the plain clip.
"""

import argparse
import csv
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.calibration.race import PLAIN, after_rung, choice, next_rung, start, verdict

Table = dict[str, np.ndarray]  # by candidate, of every prompt


def read_table(path: Path) -> Table:
    """CountAcc by candidate; plain clips first."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    return {
        name: np.array([float(line[name]) for line in lines]) for name in lines[0] if name not in ("seed", "prompt")
    }


@dataclass(frozen=True, kw_only=True)
class Races:
    """What many races over one table came to."""

    regret: float  # CountAcc, on average
    worst: float
    clips: float  # on average
    chosen: Counter[str]
    verdicts: Counter[str]


def race(table: Table, clips: int, races: int, seed: int = 0) -> Races:
    """Races with a budget of clips, each on prompts of its own."""
    random, size = np.random.default_rng(seed), len(table[PLAIN])
    best = max(values.mean() for name, values in table.items() if name != PLAIN)
    regrets, spent, chosen, verdicts = [], [], Counter[str](), Counter[str]()
    for _ in range(races):
        drawn = random.integers(0, size, clips)
        values = {name: own[drawn].tolist() for name, own in table.items()}
        state = start(list(table))
        while True:
            state, rung = next_rung(state, clips, clips)
            if rung is None:
                break
            state = after_rung(state, rung, values)
        name = choice(state, values)
        chosen[name] += 1
        verdicts[verdict(state, values, name)] += 1
        regrets.append(best - table[name].mean())
        spent.append(sum(state.made.values()))
    return Races(
        regret=float(np.mean(regrets)),
        worst=float(np.max(regrets)),
        clips=float(np.mean(spent)),
        chosen=chosen,
        verdicts=verdicts,
    )


def mixed(table: Table, worse: list[float], seed: int = 0) -> Table:
    """Plain clips, and candidates that are as bad as these on such shares of the prompts, else as `numina`."""
    random, size = np.random.default_rng(seed), len(table[PLAIN])
    own = [np.where(random.random(size) < share, table[PLAIN], table["numina"]) for share in worse]
    return {PLAIN: table[PLAIN]} | {f"m{place}": values for place, values in enumerate(own)}


def collect(path: Path, prompts: int, seed: int, steps: int, frames: int) -> None:
    """All candidates' CountAcc on held-out prompts of the embedded model, a prompt at a time, on one core."""
    import torch

    from cluster.job.config import load_job
    from tests.benchmarks.counting import Bench, shares
    from tests.benchmarks.jobs import job_model

    torch.set_num_threads(1)
    size = ["generation.height=128", "generation.width=128", "generation.guidance_scale=3", "model.device=cpu"]
    size += [f"generation.num_frames={frames}", f"generation.steps={steps}"]
    job = load_job("calibrate/candidates", [*size, "strategies=[baseline,numina]"])
    own = {name: method for name, method in job.variants.items() if method.named() != job.method.named()}
    job = replace(job, variants=own)
    names = [PLAIN, "numina", *own]
    model = job_model(job, "cpu")
    done = len(path.read_text().splitlines()) - 1 if path.exists() else 0
    if not path.exists():
        path.write_text(",".join(["seed", "prompt", *names]) + "\n")
    for item in shares(prompts, 1, seed, 1)[0][done:]:
        found = [result.accuracy for result in Bench(model, job, [item], 0).results()]  # plain, then as in `names`
        with path.open("a") as file:
            file.write(",".join([str(seed), str(item.number), *(f"{value:.4f}" for value in found)]) + "\n")


def convert(study: Path, path: Path) -> None:
    """A table of the results of `tests.benchmarks.counting`."""
    results = [json.loads(line) for line in study.read_text().splitlines()]
    names = list(dict.fromkeys(result["variant"] for result in results))
    lines: dict[tuple[int, int], dict[str, float]] = {}
    for result in results:
        lines.setdefault((result["seed"], result["number"]), {})[result["variant"]] = result["accuracy"]
    header = ",".join(["seed", "prompt", *(PLAIN if name == "plain" else name for name in names)])
    text = [",".join([*map(str, key), *(f"{own[name]:.4f}" for name in names)]) for key, own in lines.items()]
    path.write_text("\n".join([header, *text]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "convert", "race"])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2000, help="of the prompts")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--clips", type=int, nargs="+", default=[60])
    parser.add_argument("--plain-right", action="store_true", help="only prompts whose plain clip is right")
    parser.add_argument("--worse", type=float, nargs="+", help="shares of prompts, of mixed candidates")
    parser.add_argument("--races", type=int, default=500)
    options = parser.parse_args()
    if options.what == "collect":
        collect(options.files[0], options.prompts, options.seed, options.steps, options.frames)
    elif options.what == "convert":
        convert(*options.files)
    else:
        table = read_table(options.files[0])
        if options.plain_right:
            right = table[PLAIN] == 1
            table = {name: own[right] for name, own in table.items()}
        print(f"{len(table[PLAIN])} prompts:", ", ".join(f"{name} {own.mean():.3f}" for name, own in table.items()))
        if options.worse:
            table = mixed(table, options.worse)
            print("mixed:", ", ".join(f"{name} {own.mean():.3f}" for name, own in table.items()))
        for clips in options.clips:
            found = race(table, clips, options.races)
            print(
                f"{clips} clips: mean regret {found.regret:.4f}, worst {found.worst:.4f}, {found.clips:.0f} spent;"
                f" chosen {dict(found.chosen.most_common())}, {dict(found.verdicts.most_common())}"
            )


if __name__ == "__main__":
    main()
