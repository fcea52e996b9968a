"""How many frames a second judges look at, ours beside plain transformers, at the models' true shapes, random weights.

    python -m tests.benchmarks.judges                     # on a GPU: float16, an 81-frame clip of 480×832 and two nouns
    python -m tests.benchmarks.judges --compile           # and once more with GroundingDINO's layers compiled
    python -m tests.benchmarks.judges --profile           # and which kernels took it
    python -m tests.benchmarks.judges --tiny              # small models, for a machine without a GPU

Plain is transformers as documented: its processor frame by frame, captions encoded with every frame, float32 weights
under autocast; `forward` is its model alone, without preparing and post-processing. Ours is `judge()`, from bytes to
counts. Frames a second are the best of `--repeats` after a warm-up; `clip` is one of 81 frames, `study` the 210 such
clips of the published benchmark, decoding mp4s apart. Random weights cost what trained ones do, but for duplicates,
which depend on how many boxes are found: the threshold is set so that about 30 are.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from numina.prompts.targets import Target
from pipelines.judges import Case, JudgeConfig, load_judge
from tests.pipelines.judges import tiny

CLIPS, LENGTH = 210, 81
PROMPT, NOUNS = "three cats and a teddy bear", ("cats", "teddy bear")


def build(kind: str, folder: Path, small: bool) -> Path:
    """The model's folder: of the published shape, or the tests' tiny one."""
    if small:
        return {"grounding-dino": tiny.grounding_dino, "owlv2": tiny.owlv2, "clip": tiny.clip}[kind](folder)
    return tiny.published(kind, folder)


def best(repeats: int, run: Callable[[], Any], device: torch.device) -> float:
    """Seconds."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def row(kind: str, name: str, batch: int, frames: int, seconds: float, device: torch.device) -> None:
    rate = frames / seconds
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:5.1f}" if device.type == "cuda" else "    -"
    print(
        f"{kind:15} {name:30} {batch:5} {rate:9.2f} {LENGTH / rate:7.1f} {CLIPS * LENGTH / rate / 60:9.1f}  {peak}",
        flush=True,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def plain(judge: Any, video: np.ndarray, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """transformers' own way over all frames, and its forward alone over as many."""
    device, kind = judge.device, judge.config.kind
    arithmetic = torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()
    texts: Any = {
        "grounding-dino": ". ".join(NOUNS) + ".",
        "owlv2": [f"a photo of a {noun}" for noun in NOUNS],
        "clip": PROMPT,
    }[kind]

    def inputs(frames: Sequence[np.ndarray]) -> Any:
        text = [texts] * (1 if kind == "clip" else len(frames))
        images = [Image.fromarray(frame) for frame in frames]
        return judge.processor(
            images=images, text=text, padding="max_length" if kind == "owlv2" else True, return_tensors="pt"
        ).to(device)

    def forward(prepared: Any) -> Any:
        with torch.inference_mode(), arithmetic:
            return judge.model(**prepared)

    def whole() -> None:
        for start in range(0, len(video), batch):
            frames = video[start : start + batch]
            prepared = inputs(frames)
            output = forward(prepared)
            if kind == "clip":
                output.logits_per_image.cpu()
            else:
                post = judge.processor.post_process_grounded_object_detection
                extra = (prepared["input_ids"],) if kind == "grounding-dino" else ()
                sizes = [frame.shape[:2] for frame in frames]
                [
                    found["scores"].cpu()
                    for found in post(output, *extra, threshold=judge.config.box_threshold, target_sizes=sizes)
                ]

    ready = inputs(video[:batch])
    return whole, lambda: [forward(ready) for _ in range(0, len(video), batch)]


def sensible(judge: Any, video: np.ndarray) -> float:
    """The threshold that about 30 boxes of the first frame are above."""
    frames = torch.from_numpy(video[:1]).to(judge.device).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = judge.propose(frames, [judge.read(NOUNS)])
    return float(found.scores.float().flatten().sort(descending=True).values[:30][-1].clamp(0, 1))


def measure(kind: str, options: argparse.Namespace, folder: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (48, 80) if options.tiny else (480, 832)
    video = np.random.default_rng(0).integers(0, 256, (options.frames, *size, 3), dtype=np.uint8)
    case = Case(video=video, prompt=PROMPT, targets=tuple(Target(noun, 1) for noun in NOUNS))
    shared: dict[str, Any] = {"kind": kind, "name": kind, "path": str(folder), "text_threshold": 0.0}
    first = load_judge(JudgeConfig(**shared))
    threshold = 0.5 if kind == "clip" else sensible(first, video)
    del first
    for batch in options.batch:
        config = JudgeConfig(**shared, box_threshold=threshold, batch=batch, duplicates=None if kind == "clip" else 0.7)
        reference: Any = load_judge(config)
        reference.model = type(reference.model).from_pretrained(folder, dtype=torch.float32).to(device)  # as published
        whole, forward = plain(reference, video, batch)
        theirs = flops(reference, case) if options.flops else 0.0
        rounds = -(-options.frames // batch) * batch
        if not options.ours_alone:
            row(kind, "transformers", batch, options.frames, best(options.repeats, whole, device), device)
            row(kind, "transformers, forward", batch, rounds, best(options.repeats, forward, device), device)
        del reference, whole, forward
        judge: Any = load_judge(config)
        if options.flops:
            print(f"  of a frame: {flops(judge, case) / 1e9:.3g} GFLOP, with transformers' layers {theirs / 1e9:.3g}")
        seconds = best(options.repeats, lambda judge=judge: judge.judge([case]), device)
        row(kind, f"ours, {str(judge.dtype).removeprefix('torch.')}", batch, options.frames, seconds, device)
        if options.profile:
            profiled(lambda judge=judge: judge.judge([case]))
        if options.compile and kind == "grounding-dino":
            parts = [judge.model.model.backbone, *judge.model.model.encoder.layers, *judge.model.model.decoder.layers]
            for part in parts:
                part.compile()
            seconds = best(options.repeats, lambda judge=judge: judge.judge([case]), device)
            row(kind, "ours, compiled", batch, options.frames, seconds, device)


def profiled(run: Callable[[], Any]) -> None:
    """Prints the kernels, or a CPU's operators, that took most of one run."""
    gpu = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if gpu:
            torch.cuda.synchronize()
    took = sorted(((event.self_device_time_total if gpu else event.self_cpu_time_total, event.count, event.key)
                   for event in profile.key_averages()), reverse=True)  # fmt: skip
    whole = sum(microseconds for microseconds, _, _ in took)
    print(f"  {whole / 1e6:.3f} s in {sum(count for _, count, _ in took)} kernels, of it:")
    for microseconds, count, name in took[:25]:
        print(f"  {microseconds / whole:6.1%} {count:6}  {name[:110]}")


def flops(judge: Any, case: Case) -> float:
    """Floating-point operations of one frame, those of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        judge.judge([replace(case, video=case.video[:1])])
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["grounding-dino", "owlv2", "clip"])
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with GroundingDINO's layers compiled")
    parser.add_argument("--profile", action="store_true", help="print which kernels ours takes its time in")
    parser.add_argument("--flops", action="store_true", help="print how many floating-point operations a frame is")
    parser.add_argument("--ours-alone", action="store_true", help="leave plain transformers out")
    parser.add_argument("--tiny", action="store_true", help="the tests' tiny models and 48×80 pixels")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {options.frames} frames, best of {options.repeats}")
    print("judge           how                            batch  frames/s  clip, s  study, min  peak GiB", flush=True)
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, options, build(kind, Path(folder) / kind, options.tiny))


if __name__ == "__main__":
    main()
