"""Share of synthetic clips whose counts are read right, by kind of trouble and preset.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.stress [--kinds parts,touching] [--clips 40] [--presets fused,closed]

The clips are those of tests/numina/fused/troubles.py, at the 30 × 52 tokens of 480p; a minute a preset on one core.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from numina.config import IdentifyConfig, MethodConfig
from tests.numina.fused.read import read
from tests.numina.fused.troubles import HEIGHT, KINDS, WIDTH, clips

PRESETS = Path(__file__).parents[2] / "configs" / "method"


def identify_config(preset: str, tokens: int = HEIGHT * WIDTH) -> IdentifyConfig:
    """A preset's settings for frames of so many tokens."""
    loaded = OmegaConf.merge(OmegaConf.structured(MethodConfig), OmegaConf.load(PRESETS / f"{preset}.yaml"))
    method: MethodConfig = OmegaConf.to_object(loaded)  # type: ignore[assignment]
    return method.scaled_to(tokens).identify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--presets", default="fused,closed")
    options = parser.parse_args()
    presets = {name: identify_config(name) for name in options.presets.split(",")}
    shares: dict[tuple[str, str], list[float]] = {}
    print(f"{'kind':<10}" + "".join(f"{name + ' ' + level:>15}" for name in presets for level in ("mild", "hard")))
    began = time.perf_counter()
    for kind in options.kinds.split(","):
        line = f"{kind:<10}"
        for name, config in presets.items():
            for level in ("mild", "hard"):
                right = [
                    tuple(read(clip, config).clip_counts()) == clip.counts for clip in clips(kind, level, options.clips)
                ]
                shares.setdefault((name, level), []).append(float(np.mean(right)))
                line += f"{np.mean(right):>15.2f}"
        print(line, flush=True)
    print(f"{'mean':<10}" + "".join(f"{np.mean(own):>15.3f}" for own in shares.values()))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
