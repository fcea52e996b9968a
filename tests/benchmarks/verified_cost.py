"""What a verified clip costs: GPU-seconds for one clip whose counts are right, by model, sampler, steps and preset.

    python -m tests.benchmarks.verified_cost

Seconds are `numina plan`'s, for one compiled GPU and a clip from text to pixels: its forwards (a corrected clip's by
its preset), the text encoder and decoding, each by a row of `configs/measured/h100.yaml`.
Shares are the **embedded model's**, from tests.benchmarks.counting: how many clips are guided, and how many are
accepted by a judge that is always right. One verified clip takes 1/share clips: the mean that `numina plan --accuracy
SHARE` counts on, too. A real model's shares differ; `numina evaluate` shows them, and a judge's own time isn't counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.job.config import load_job
from cluster.planner import Demand, Gpu, Planner, Setup, check_for_gpus, load_gpu


@dataclass(frozen=True)
class Shares:
    """Of the embedded model's clips, at 25 steps with guidance or at 4 without."""

    plain: float  # of plain clips that are verified
    guided: float  # of clips whose counts are read as wrong
    verified: float  # of the preset's clips


SHARES = {
    ("closed", "native", 25): Shares(plain=0.330, guided=0.662, verified=0.978),  # cheaper.yaml, 400 clips
    ("quick", "native", 25): Shares(plain=0.330, guided=0.662, verified=0.958),
    ("few-step", "euler", 4): Shares(plain=0.315, guided=0.672, verified=0.935),  # few_step.yaml, 400 clips
    ("few-step", "renoise", 4): Shares(plain=0.350, guided=0.645, verified=0.935),  # the same, 200 clips
}
BASES = {
    "14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}
HALF = "generation.vae_dtype=bfloat16"
JOBS = {  # (model, job file, its further settings) → presets; few-step models have the shapes of their bases
    ("14B", "wan14b", HALF): ("closed", "quick"),
    ("14B", "wan14b", HALF, "generation.steps=25"): ("closed", "quick"),
    ("14B", "recipes/lightx2v-14b", HALF, "model.loras=[]"): ("few-step",),
    ("1.3B", "wan1.3b", HALF): ("closed", "quick"),
    ("1.3B", "recipes/rcm-1.3b", HALF): ("few-step",),
    ("5B", "wan2.2-5b"): ("closed", "quick"),
    ("5B", "recipes/fastwan-5b"): ("few-step",),
}


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds of one GPU."""

    model: str
    sampler: str
    steps: int
    preset: str
    plain: float
    corrected: float
    shares: Shares | None  # None: not measured for this sampler and so many steps

    def of_plain(self) -> float:
        """Seconds of a verified clip without correction."""
        assert self.shares
        return self.plain / self.shares.plain

    def of_corrected(self) -> float:
        """Seconds of a verified clip: those that are guided cost more."""
        assert self.shares
        own = self.shares
        return (own.guided * self.corrected + (1 - own.guided) * self.plain) / own.verified


def shares_of(preset: str, sampler: str, steps: int) -> Shares | None:
    """Measured ones; those of 25 steps stand for 50, and 3 steps have none."""
    return SHARES.get((preset, sampler, 25 if steps == 50 else steps))


def rows(gpu: Gpu) -> Iterator[Row]:
    """The table."""
    for (model, job, *settings), presets in JOBS.items():
        for preset in presets:
            words = [f"model.path={BASES[model]}", "strategies=[numina]", f"method.preset={preset}", *settings]
            checked = check_for_gpus(load_job(job, words))
            cost = Planner(checked, gpu, Demand()).time.of(Setup(compile=True))
            assert cost is not None, f"no forward of {model} is measured"
            own = checked.job.generation
            shares = shares_of(preset, own.sampler, own.steps)
            yield Row(model, own.sampler, own.steps, preset, cost.seconds_if_right, cost.seconds, shares)


def main() -> None:
    columns = ["model", "sampler", "steps", "preset", "plain clip, s", "corrected clip, s"]
    columns += ["tried, plain", "tried, corrected", "GPU-s per verified, plain", "GPU-s per verified, corrected"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows(load_gpu("h100")):
        cells = [row.model, row.sampler, str(row.steps), f"`{row.preset}`", f"{row.plain:.1f}", f"{row.corrected:.1f}"]
        if row.shares:
            cells += [f"{1 / row.shares.plain:.2f}", f"{1 / row.shares.verified:.2f}"]
            cells += [f"{row.of_plain():.0f}", f"{row.of_corrected():.0f}"]
        print("| " + " | ".join(cells + ["–"] * (10 - len(cells))) + " |")


if __name__ == "__main__":
    main()
