"""Jobs on real gangs: what loading takes, how long GPUs wait between clips, what a rank's memory holds.

    python -m tests.benchmarks.gangs build --model 1.3b --folder /tmp/wan1.3b
    python -m tests.benchmarks.gangs run --folder /tmp/wan1.3b --clips 4 parallel.cfg=2
    python -m tests.benchmarks.gangs run --folder /tmp/wan1.3b --clips 8 parallel.gangs=2

`build` writes a checkpoint of Wan2.1's layout: transformer and VAE at their true shapes with random weights, a text
encoder of one small layer (the real one is another 11 GB to write). `run` is the job runner itself on a local Ray, at
480p and 81 frames unless the overrides say otherwise (`generation.crf=51`: an mp4 of noise takes long). Of each gang's
time between its first call and the end of its last one it prints what was denoising, what decoding, and what neither:
texts, waiting for layouts, and the way of calls and answers. Shares are given for the steps that were run and for 50.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from transformers import UMT5Config, UMT5EncoderModel

from cluster.dataset.store import Store
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from pipelines.testbed.model import build_tokenizer
from pipelines.testbed.world import heldout_prompts
from tests.benchmarks.guidance_cost import MODELS, build

WHOLE = 50  # steps of a clip as users make it
DENOISING = ("identify", "denoise", "guide")
PARTS = {  # a call's span → the timings of what it did
    "identify": ("encode", "identify"),
    "finish": ("denoise", "decode"),
    "guide": ("guide", "decode"),
    "denoise": ("encode", "denoise", "decode"),
}


def write_checkpoint(name: str, folder: Path, device: str, tiny: bool) -> None:
    """A folder that `WanPipeline.from_pretrained` reads."""
    transformer = build(name, None, tiny, device).transformer
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 48 if tiny else 512
    width = transformer.config.text_dim
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=32, d_ff=64, num_layers=1, num_heads=2, tie_word_embeddings=False
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    vae = AutoencoderKLWan(**({"base_dim": 8, "num_res_blocks": 1} if tiny else {}))
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).to(torch.bfloat16),
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder, max_shard_size="5GB")


def run(folder: Path, clips: int, overrides: list[str]) -> None:
    """Runs a job and prints what it took."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    with tempfile.TemporaryDirectory() as work:
        prompts = [{"id": str(i), "prompt": one.text} for i, one in enumerate(heldout_prompts(clips, 0))]
        make_prompts(prompts, f"{work}/prompts.parquet")
        places = [f"model.path={folder}", f"prompts={work}/prompts.parquet", f"output={work}/out"]
        job = load_job("wan1.3b", ["cluster.address=local", *places, "generation.steps=10", *overrides])
        stages: dict[str, list[tuple[float, str]]] = {}

        def watch(progress: JobProgress) -> None:
            now = time.perf_counter()
            for gang, stage in progress.gangs.items():
                seen = stages.setdefault(gang, [])
                if not seen or seen[-1][1] != stage:
                    seen.append((now, stage))

        began = time.perf_counter()
        outcome = run_job(prepare(job), watch)
        whole = time.perf_counter() - began
        rows = Store(job.output).rows().to_pylist()
        for gang, seen in stages.items():
            print(f"{gang}: " + " → ".join(f"{stage} at {at - began:.1f} s" for at, stage in seen[:4]))
        print(f"{outcome.done} clips, {outcome.failed} failed, {whole:.0f} s in all, overrides {' '.join(overrides)}")
        for row in rows:
            took = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row["timings"].items() if seconds)
            print(f"  clip {row['id']}, {'guided' if row['guided'] else 'not guided'}: {took}")
        report(rows, job.generation.steps)


def report(rows: list[dict], steps: int) -> None:
    """What each gang did with its time, from the rows' spans and timings."""
    peak = max((row["peak_memory_bytes"] or 0) for row in rows) / 2**30
    print(f"peak of rank 0: {peak:.1f} GiB")
    for gang in sorted({span["place"] for row in rows for span in row["spans"] if span["place"].startswith("gang")}):
        mine = [row for row in rows if any(span["place"] == gang for span in row["spans"])]
        spans = sorted(
            ((span, row["timings"]) for row in mine for span in row["spans"] if span["place"] == gang),
            key=lambda pair: pair[0]["began"],
        )
        gaps, end = [], spans[0][0]["began"]
        for span, timings in spans:
            ended = span["began"] + span["seconds"]
            gaps.append(ended - end - sum(timings[part] or 0.0 for part in PARTS[span["stage"]]))
            end = ended
        whole, decode, denoising = end - spans[0][0]["began"], 0.0, 0.0
        for row in mine:
            decode += row["timings"]["decode"]
            denoising += sum(row["timings"][stage] or 0.0 for stage in DENOISING)
        clips = len(mine)
        print(f"{gang}: {clips} clips; a clip {whole / clips:.2f} s, denoising {denoising / clips:.2f}", end=", ")
        print(f"decode {decode / clips:.2f}; between two calls {statistics.median(gaps):.3f} s (median),", end=" ")
        print(f"{max(gaps[1:], default=0.0):.3f} s at most after the first")
        rest, idle, then = whole - denoising, whole - denoising - decode, denoising * WHOLE / steps
        for name, part in (("all but denoising", rest), ("without work", idle)):
            print(
                f"  {name}: {100 * part / whole:.1f} % at {steps} steps, {100 * part / (rest + then):.2f} % at {WHOLE}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    builder = verbs.add_parser("build")
    builder.add_argument("--model", default="1.3b", choices=list(MODELS))
    builder.add_argument("--tiny", action="store_true", help="a small model, for a machine without a GPU")
    runner = verbs.add_parser("run")
    runner.add_argument("--clips", type=int, default=4)
    runner.add_argument("overrides", nargs="*", help="of the job, e.g. parallel.cfg=2 strategies=[baseline]")
    for verb in (builder, runner):
        verb.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    if options.verb == "build":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_checkpoint(options.model, options.folder, device, options.tiny)
    else:
        run(options.folder, options.clips, options.overrides)


if __name__ == "__main__":
    main()
