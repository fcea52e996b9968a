"""One rank against two on the embedded model: chosen heads, layouts, and latents under the same plan.

    python -m tests.benchmarks.ranks --prompts 8 [--ranks 2]

Real gloo ranks, float32. Counts frames whose self-attention head differs, nouns whose cross-attention head differs and
tokens whose label differs; the largest difference of guided latents is given the single rank's plan.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.job.config import JobConfig, load_job
from numina.correct import correct
from numina.guidance import GuidancePlan
from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans, locate_tokens
from pipelines.attention.capture import ClipCapture
from pipelines.attention.engines import parallelize
from pipelines.base import Text, VideoModel
from pipelines.models.registry import load_model
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from pipelines.testbed.world import Prompt, heldout_prompts

PRESETS = ("paper", "closed")


def measure(
    model: VideoModel, shard: Shard, prompts: list[Prompt], plans: dict[str, GuidancePlan | None]
) -> dict[str, Any]:
    """Heads and labels of both presets, and guided latents of the preset closed, under `plans` where they are given."""
    found: dict[str, Any] = {}
    for number, prompt in enumerate(prompts):
        targets = [Target(target.noun, target.count) for target in prompt.targets]
        for preset in PRESETS:
            job = load_job("testbed", [f"method.preset={preset}"])
            texts = model.encode([prompt.text], [""], job.generation)
            spans = locate_tokens(texts[0].prompt, targets, texts[0].offsets)
            seen = look_on(model, shard, texts, spans, number, job)
            [capture], blocks = seen.results(), list(seen.seen.values())
            correction = correct(capture, targets, spans, job.method)
            name = f"{number} {preset}"
            self_heads = [block.self_heads.numpy() for block in blocks if block.self_heads is not None]
            found[f"{name} self heads"] = np.stack(self_heads) if self_heads else None
            found[f"{name} cross heads"] = np.stack([block.cross_heads[0].numpy() for block in blocks])
            found[f"{name} labels"] = correction.identified.labels
            plan = plans.setdefault(name, correction.plan)
            if preset == "closed" and plan is not None:
                latents = denoise.guide(model, shard, texts, [plan], [number], job.generation)
                found[f"{name} latents"] = latents.numpy()
    return found


def look_on(
    model: VideoModel, shard: Shard, texts: list[Text], spans: Sequence[TokenSpans], seed: int, job: JobConfig
) -> ClipCapture:
    """What identification sees at step t*, with the heads that it chose."""
    identify = job.method.identify
    reference = identify.capture_step(model.facts.times(job.generation, job.method.schedule_by))
    seen = ClipCapture(model, job.generation, shard, [spans], identify)
    denoise.advance(
        model,
        denoise.start(model, [seed], job.generation),
        texts,
        job.generation,
        until=reference + 1,
        conditional_pass=lambda step: seen.looking_on() if step == reference else nullcontext(),
    )
    return seen


def work(rank: int, ranks: int, prompts: list[Prompt], plans: dict[str, GuidancePlan | None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    model = load_model("testbed", device="cpu")
    shard = parallelize(model, ParallelConfig(ulysses=ranks))
    found = measure(model, shard, prompts, plans)
    if rank == 0:
        np.savez(folder / "found.npz", **{name: value for name, value in found.items() if value is not None})
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    prompts = heldout_prompts(options.prompts, 0)
    plans: dict[str, GuidancePlan | None] = {}
    alone = measure(load_model("testbed", device="cpu"), Shard(), prompts, plans)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (options.ranks, prompts, plans, Path(folder)), nprocs=options.ranks)
        together = dict(np.load(Path(folder) / "found.npz"))
    for preset in PRESETS:
        for what in ("self heads", "cross heads", "labels"):
            pairs = [
                (value, together[name])
                for name, value in alone.items()
                if name.endswith(f"{preset} {what}") and value is not None
            ]
            different = sum(int((one != many).sum()) for one, many in pairs)
            total = sum(one.size for one, _ in pairs)
            if total:
                print(f"{preset:>8}  {what:<12} {different} of {total} differ, 1 against {options.ranks} ranks")
    largest = [np.abs(value - together[name]).max() for name, value in alone.items() if name.endswith("latents")]
    print(
        f"guided latents under the same plan, {len(largest)} clips: largest difference {max(largest, default=0.0):.2e}"
    )


if __name__ == "__main__":
    main()
