"""How well and how fast prompts are read: `python -m tests.benchmarks.prompts SET.jsonl... [--wrong] [--articles no]`.

A row of a set is {"prompt", "targets": {noun: count} or null, "may": {noun: count}, "kind"}: what must be found, what
may be found beside it, and the kind of sentence. null: nothing may be found, and the reading must have a doubt.
Nouns are compared in the singular. Prints, per kind and over all: rows read exactly, rows with all their targets
found, rows with a wrong target that no doubt tells of, and rows that can run; then prompts per second on one core.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numina.prompts.nouns import singular
from numina.prompts.reading import Reading, read_prompt


@dataclass(frozen=True)
class Score:
    exact: bool
    found: bool  # all that must be there
    wrong: bool  # a target or a missing numeral's target that is wrong
    silent: bool  # wrong, and the reading has no doubt


def heads(targets: dict[str, int]) -> dict[str, int]:
    """Counts by the singular of each noun's last word ("cups of tea": cup)."""
    counts: dict[str, int] = defaultdict(int)
    for noun, count in targets.items():
        counts[singular(noun.lower().split(" of ")[0].split()[-1])] += count
    return dict(counts)


def score(row: dict[str, Any], reading: Reading) -> Score:
    """A wrong target is one that is neither asked for nor allowed, or has another count."""
    read = heads({target.noun: target.count for target in reading.targets})
    asked, may = heads(row["targets"] or {}), heads(row.get("may") or {})
    wrong = any(count not in (asked.get(noun), may.get(noun)) for noun, count in read.items())
    if row["targets"] is None:
        exact = not read and bool(reading.doubts)
        return Score(exact, exact, bool(read), bool(read) and not reading.doubts)
    found = all(read.get(noun) == count for noun, count in asked.items())
    return Score(found and not wrong, found, wrong, wrong and not reading.doubts)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def speed(prompts: list[str], seconds: float = 1.0) -> float:
    """Prompts read in a second on one core, past the first look at every word."""
    for prompt in prompts:
        read_prompt(prompt)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for prompt in prompts:
            read_prompt(prompt)
        done += len(prompts)
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--wrong", action="store_true", help="print the rows that are not read exactly")
    parser.add_argument("--articles", choices=["yes", "no"], default="yes", help='whether "a dog" is a target')
    options = parser.parse_args()
    rows = [row for path in options.sets for row in rows_of(path)]
    by_kind: dict[str, list[Score]] = defaultdict(list)
    for row in rows:
        reading = read_prompt(row["prompt"], articles=options.articles == "yes")
        by_kind[row.get("kind", "")].append(scored := score(row, reading))
        if options.wrong and not scored.exact:
            mark = "silent" if scored.silent else "wrong" if scored.wrong else "missed"
            told = ", ".join(f"{doubtful.doubt}: {doubtful.text}" for doubtful in reading.doubts)
            read = {target.noun: target.count for target in reading.targets}
            print(f"{mark:6} {row['prompt']}\n       asked {row['targets']} read {read} doubts {told or 'none'}")
    print(f"{'kind':24}{'rows':>6}{'exact':>7}{'found':>7}{'wrong':>7}{'silent':>8}")
    for kind, scores in [*by_kind.items(), ("all", [scored for each in by_kind.values() for scored in each])]:
        counts = [sum(getattr(scored, name) for scored in scores) for name in ("exact", "found", "wrong", "silent")]
        print(f"{kind:24}{len(scores):6}{counts[0]:7}{counts[1]:7}{counts[2]:7}{counts[3]:8}")
    short = [row["prompt"] for row in rows if 40 <= len(row["prompt"]) <= 80]
    text = " ".join(row["prompt"].rstrip(".") + "." for row in rows)
    long = [text[i : i + 684] for i in range(0, len(text) - 684, 684)]
    for name, prompts in (("of 40 to 80 characters", short), ("of 684 characters", long)):
        if prompts:
            print(f"prompts {name}: {speed(prompts):,.0f} a second")


if __name__ == "__main__":
    main()
