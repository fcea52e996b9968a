"""What judging every k-th frame alone does to a clip's verdict, on the embedded models' clips.

    python -m tests.benchmarks.counting --config testbed-4step --prompts 200 --output shapes.jsonl
    python -m tests.benchmarks.every shapes.jsonl --every 2 4 8

Prints, of all clips in files that `counting --output` wrote and by variant: how far their mean CountAcc is from that of
all frames, how far a clip's is on average, and the share of clips that a verified strategy would judge otherwise:
accepted where all frames say no, and refused where they say yes. A judge takes one k-th of the time.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from cluster.job.strategy import ACCEPT
from numina.metrics import count_accuracy


def table(name: str, clips: list[dict], every: list[int]) -> None:
    """One line per k."""
    frames = [np.array(clip["frames"]) for clip in clips]
    whole = np.array([count_accuracy(own, clip["asked"]) for own, clip in zip(frames, clips, strict=True)])
    for k in every:
        some = np.array([count_accuracy(own[::k], clip["asked"]) for own, clip in zip(frames, clips, strict=True)])
        yes, no = (some >= ACCEPT) & (whole < ACCEPT), (some < ACCEPT) & (whole >= ACCEPT)
        apart = some - whole
        print(
            f"{name:24} {len(clips):6} {k:3} {len(frames[0][::k]):7} {whole.mean():9.3f} {apart.mean():+11.4f}"
            f" {np.abs(apart).mean():9.4f} {yes.mean():9.3f} {no.mean():8.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of `counting --output`")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    print("variant                   clips   k  judged  CountAcc  difference    a clip  accepted  refused")
    for file in options.results:
        clips = [json.loads(line) for line in file.read_text().splitlines()]
        for variant in dict.fromkeys(clip["variant"] for clip in clips):
            table(f"{file.stem}, {variant}", [clip for clip in clips if clip["variant"] == variant], options.every)


if __name__ == "__main__":
    main()
