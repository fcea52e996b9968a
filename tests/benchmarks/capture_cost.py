"""What the capture of one clip costs, and how near it comes to exact arithmetic.

    python -m tests.benchmarks.capture_cost [--heads 12 40] [--frames 21] [--height 30 --width 52] [--device cuda]
    python -m tests.benchmarks.capture_cost --fused

Scores all heads of all frames and takes the responses to two nouns over 512 text tokens, on random and on structured
q and k (positions, and objects that move), in bfloat16. Prints seconds per clip, the extra memory at its peak, the
bytes that leave for the driver, how many times longer the plain float64 way would take (a few heads, scaled up), and
against that way: the share of frames that choose the same head, and how far the images are. `--degrees` repeats it for
other sizes of the Krylov space. `--testbed` instead gives that accuracy on the embedded model's own q and k, in float32
and rounded to bfloat16, by step and block. `--fused` times what the preset `fused` takes alone, and its parts. Fixed
seeds.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from numina import heads as heads_module
from numina.affinity import chosen_coordinates, clip_coordinates
from numina.config import IdentifyConfig
from numina.fused.responses import normalised
from numina.heads import (
    GREY_WEIGHTS,
    cross_response,
    deviation,
    frame_attention,
    score_deviation,
    score_heads,
    select_response,
)

TEXT_TOKENS = 512
NOUNS = ((3, 4), (11,))
PHRASES = (2, 3, 4, 7, 8)
DIM = 128
NEAR = 1e-3  # the largest error of an image that counts as equal, of a range of 1


@dataclass(frozen=True)
class Accuracy:
    """Of some frames against float64."""

    same_head: float  # share of the frames whose chosen head is the exact one
    winner_error: float  # the largest error of an exactly chosen head's image
    winners_near: float  # share of those images that are within NEAR
    near: float  # share of all heads' images that are within NEAR
    separated_near: float  # the same, of those whose first three components' variances are 1 % apart
    score_error: float  # the largest error of any score


def exact_components(attention: Tensor) -> tuple[Tensor, Tensor]:
    """One head the plain way, in float64: image [n, 3] of a map [n, n], and the least relative gap of its variances."""
    rows = attention.double()
    rows = rows - rows.mean(dim=0)
    variances, vectors = torch.linalg.eigh(rows @ rows.T)  # ascending
    leading = variances[-4:].flip(0)
    components = vectors[:, -3:].flip(-1) * leading[:3].clamp_min(0.0).sqrt()
    extreme = components.abs().argmax(dim=0, keepdim=True)
    components = components * components.gather(0, extreme).sign()
    low, high = components.amin(dim=0), components.amax(dim=0)
    noise = 1e-5 * attention.mean(dim=0).max().double()
    return torch.where(high - low > noise, (components - low) / (high - low), 0.0), 1 - (
        leading[1:] / leading[:3]
    ).max()


def exact_scores(images: Tensor, config: IdentifyConfig) -> Tensor:
    """S of exact images [heads, H, W, 3]."""
    grey = images @ images.new_tensor(GREY_WEIGHTS)
    return (
        config.contrast_weight * grey.flatten(1).std(dim=1, correction=0)
        + config.structure_weight * heads_module._block_variance(grey, config.structure_blocks)
        + config.edge_weight * heads_module._edge_strength(grey)
    )


def measure(q: Tensor, k: Tensor, grid: tuple[int, int], frames: Sequence[int]) -> Accuracy:
    """score_heads of q and k [F, N, n, D] against float64 of the same, on some of the frames."""
    config = IdentifyConfig()
    q, k = q[list(frames)], k[list(frames)]
    scores, components = score_heads(q, k, grid, config)
    errors, exact, gaps = [], [], []
    for frame in range(len(frames)):
        pairs = [
            exact_components(frame_attention(q[frame, h : h + 1], k[frame, h : h + 1])[0]) for h in range(q.shape[1])
        ]
        images = torch.stack([image for image, _ in pairs]).unflatten(1, grid)
        exact.append(exact_scores(images, config))
        errors.append((components[frame] - images).abs().flatten(1).amax(dim=1))
        gaps.append(torch.stack([gap for _, gap in pairs]))
    error, truth, gap = torch.stack(errors), torch.stack(exact), torch.stack(gaps)
    winners = truth.argmax(dim=1)
    of_winners = error.gather(1, winners[:, None])
    return Accuracy(
        share(scores.argmax(dim=1) == winners),
        of_winners.max().item(),
        share(of_winners < NEAR),
        share(error < NEAR),
        share(error[gap > 0.01] < NEAR),
        (scores - truth).abs().max().item(),
    )


def share(hits: Tensor) -> float:
    """The share that is true; nan of nothing."""
    return hits.double().mean().item()


def random_pair(frames: int, heads: int, grid: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Normal q and k [F, N, n, D]: maps without structure, whose components hardly differ in variance."""
    shape = (frames, grid[0] * grid[1], heads, DIM)  # rows of all heads side by side, as a transformer has them
    generator = torch.Generator(device).manual_seed(0)
    q, k = (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(2))
    return q.transpose(1, 2), k.transpose(1, 2)


def structured_pair(frames: int, heads: int, grid: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """q and k [F, N, n, D] of heads that see near positions, objects that move, or both, in growing strength."""
    generator = torch.Generator().manual_seed(1)
    height, width = grid
    down, across = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    start, speed = torch.rand(5, 2, generator=generator), 0.02 * torch.randn(5, 2, generator=generator)
    radius = 0.06 + 0.06 * torch.rand(5, generator=generator)
    label = torch.zeros(frames, height, width, dtype=torch.int64)  # 0: background
    for frame in range(frames):
        for number, (y, x) in enumerate((start + frame * speed) % 1.0):
            label[frame][(down - y) ** 2 + (across - x) ** 2 < radius[number] ** 2] = number + 1
    objects = torch.randn(6, heads, DIM, generator=generator)[label.flatten(1)]  # [F, n, N, D]
    place = torch.stack([down.flatten() * height, across.flatten() * width], dim=1)
    phase = torch.einsum("np,phd->nhd", place, 0.12 * torch.randn(2, heads, DIM // 2, generator=generator))
    waves = torch.cat([phase.cos(), phase.sin()], dim=-1)  # products of two rows fall off with their distance
    near = torch.arange(heads) % 4 / 2.0
    seen = (torch.arange(heads) // 4 % 4 + 1) / 4.0
    common = near[:, None] * waves + seen[:, None] * objects
    noise = 0.4 * torch.randn(2, *common.shape, generator=generator)
    q, k = (common + noise).to(device, torch.bfloat16).transpose(2, 3)
    return q, k


def seconds(work: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Wall times of work whose kernels are waited for, after one call that isn't counted."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return times[1:]


def synchronise(device: str) -> None:
    """Waits for the GPU, where there is one."""
    if device != "cpu":
        torch.cuda.synchronize()


def extra_memory(work: Callable[[], object], device: str) -> float:
    """GiB above what is held now; nan on a CPU."""
    if device == "cpu":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def fused_cost(heads: int, options: argparse.Namespace) -> None:
    """What the preset `fused` takes: responses and coordinates of all heads of 8 blocks, of which the best leave."""
    grid, device, blocks = (options.height, options.width), options.device, 8
    size = grid[0] * grid[1]
    q, k = (x.transpose(1, 2).flatten(0, 1) for x in structured_pair(options.frames, heads, grid, device))
    text = torch.randn(TEXT_TOKENS, heads, DIM, device=device, dtype=torch.bfloat16)
    frame = torch.arange(options.frames, device=device).repeat_interleave(size)
    took: dict[str, float] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        if not options.parts:
            return work()
        synchronise(device)
        began, found = time.perf_counter(), work()
        synchronise(device)
        took[name] = took.get(name, 0.0) + time.perf_counter() - began
        return found

    def respond() -> Tensor:
        maps = cross_response(q, text, NOUNS).unflatten(2, (options.frames, *grid))
        deviation(score_deviation(q, text, PHRASES))
        return select_response(maps, "mean")[0]

    def locate() -> Tensor:
        return clip_coordinates(q, k, frame, (options.frames, size), add=lambda sums: sums)

    def capture() -> tuple[Tensor, Tensor]:
        responses, tokens = [], []
        for _ in range(blocks):
            responses.append(part("responses", respond))
            found = part(
                "coordinates", lambda: clip_coordinates(q, k, frame, (options.frames, size), lambda sums: sums)
            )
            tokens.append(found.unflatten(1, (options.frames, *grid)))
        shares = part("normalised", lambda: normalised(torch.stack(responses)))[0]
        kept = part("chosen", lambda: chosen_coordinates(torch.cat(tokens), shares))[0]
        return shares.half().cpu(), kept.half().cpu()

    options.parts = False
    times = seconds(capture, device, options.repeats)
    memory = extra_memory(capture, device)
    leaving = sum(found.numel() * found.element_size() for found in capture())
    options.parts = True
    took.clear()
    capture()
    parts = ", ".join(f"{name} {1000 * own:.1f}" for name, own in took.items())
    print(
        f"     fused {heads:>5} {blocks} blocks {median(times):>8.4f} {min(times):>8.4f}  {memory:.2f} GiB,"
        f" {leaving:,} bytes; by itself, ms: {parts}",
        flush=True,
    )


def cost(heads: int, options: argparse.Namespace) -> None:
    """One line of the table for each kind of q and k."""
    grid, device = (options.height, options.width), options.device
    generator = torch.Generator(device).manual_seed(2)
    rows = options.frames * grid[0] * grid[1]
    text_q = torch.randn(rows, heads, DIM, generator=generator, device=device, dtype=torch.bfloat16)
    text_k = torch.randn(TEXT_TOKENS, heads, DIM, generator=generator, device=device, dtype=torch.bfloat16)
    config = IdentifyConfig()
    for kind, make in {"random": random_pair, "structured": structured_pair}.items():
        q, k = make(options.frames, heads, grid, device)

        def score(q: Tensor = q, k: Tensor = k) -> tuple[Tensor, Tensor]:
            scores, components = score_heads(q, k, grid, config)
            best = scores.argmax(dim=1)
            return best, components[torch.arange(len(best), device=device), best]

        def respond() -> Tensor:
            responses = cross_response(text_q, text_k, NOUNS).unflatten(2, (options.frames, *grid))
            return select_response(responses, "peak_frame")[0]

        def capture() -> tuple[Tensor, Tensor]:
            return score()[1], respond()

        def plain(q: Tensor = q, k: Tensor = k) -> None:
            for head in range(min(3, heads)):
                exact_components(frame_attention(q[0, head : head + 1], k[0, head : head + 1])[0])

        both, own, cross = (seconds(work, device, options.repeats) for work in (capture, score, respond))
        memory = extra_memory(capture, device)
        leaving = sum(part.numel() * 4 for part in capture())
        compared = range(0, options.frames, max(1, options.frames // max(1, options.exact_frames)))
        errors = row(measure(q, k, grid, compared[: options.exact_frames])) if options.exact_frames else ""
        by_head = median(seconds(plain, device, 1)) / min(3, heads) * heads * options.frames
        print(
            f"{kind:>10} {heads:>5} {heads_module.DEGREE:>6} {median(both):>8.4f} {min(both):>8.4f} {median(own):>8.4f}"
            f" {median(cross):>8.4f} {memory:>7.2f} {leaving:>10} {by_head / median(own):>7.0f}x {errors}",
            flush=True,
        )

    blocks = {12: 23, 40: 30}.get(heads, 8)  # Wan2.1-1.3B's and -14B's, but the first quarter

    def closed() -> Tensor:
        """What the preset `closed` takes: the mean over heads of many blocks, and the spread of their scores."""
        responses = []
        for _ in range(blocks):
            maps = cross_response(text_q, text_k, NOUNS).unflatten(2, (options.frames, *grid))
            responses.append(select_response(maps, "mean")[0])
            deviation(score_deviation(text_q, text_k, PHRASES))
        return torch.stack(responses)

    took = seconds(closed, device, options.repeats)
    memory = extra_memory(closed, device)
    print(f"    closed {heads:>5} {blocks} blocks {median(took):>8.4f} {min(took):>8.4f}  {memory:.2f} GiB", flush=True)


def row(accuracy: Accuracy) -> str:
    """Cells in the order of ACCURACY."""
    return (
        f"{accuracy.same_head:>9.3f} {accuracy.winner_error:>9.1e} {accuracy.winners_near:>9.3f} {accuracy.near:>9.3f}"
        f" {accuracy.separated_near:>9.3f} {accuracy.score_error:>9.1e}"
    )


ACCURACY = " ".join(f"{name:>9}" for name in ("same head", "win. err", "win.<1e-3", "all<1e-3", "gap>1 %", "score err"))


def testbed(device: str, dtype: torch.dtype, size: int) -> None:
    """The embedded model's own maps of one clip, by step and block, of queries and keys rounded to `dtype`."""
    from pipelines.attention.cross import Onlooker, processors
    from pipelines.base import GenerationConfig
    from pipelines.models.registry import load_model
    from pipelines.sampling import denoise

    model = load_model("testbed", device=device)
    generation = GenerationConfig(height=size, width=size, num_frames=17, fps=8, steps=25)
    grid = model.grid(generation)
    texts = model.encode(["four red circles and two blue squares moving on a grey background"], [""], generation)
    seen: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def looking_on(step: int) -> AbstractContextManager[None]:
        if step not in (1, 10, 20):
            return nullcontext()
        blocks = {model.self_attention(block): block for block in range(model.depth)}

        def keep(block: int) -> Callable[[Tensor, Tensor], None]:
            def see(query: Tensor, key: Tensor) -> None:
                frames = (x.reshape(-1, *x.shape[-2:]).unflatten(0, (grid.frames, -1)) for x in (query, key))
                q, k = (x.transpose(1, 2).to(dtype) for x in frames)
                seen[step, block] = q, k

            return see

        return processors({own: Onlooker(own.processor, keep(block)) for own, block in blocks.items()})

    state = denoise.start(model, [3], generation)
    denoise.advance(model, state, texts, generation, until=21, conditional_pass=looking_on)
    print(f"{'step':>4} {'block':>5} {ACCURACY}")
    for (step, block), (q, k) in seen.items():
        print(f"{step:>4} {block:>5} {row(measure(q, k, (grid.height, grid.width), range(grid.frames)))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[12, 40])
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--height", type=int, default=30, help="of the token grid")
    parser.add_argument("--width", type=int, default=52)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--exact-frames", type=int, default=1, help="frames compared with float64; 0: none")
    parser.add_argument("--degrees", type=int, nargs="+", default=[heads_module.DEGREE])
    parser.add_argument("--testbed", action="store_true", help="accuracy on the embedded model instead of cost")
    parser.add_argument("--fused", action="store_true", help="the preset fused alone, with its parts")
    parser.add_argument("--size", type=int, default=256, help="of the embedded model's video; 128: maps solved in full")
    options = parser.parse_args()

    name = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}")
    columns = ["heads", "degree", "median s", "min s", "self s", "cross s", "GiB", "bytes", "plain"]
    widths = [5, 6, 8, 8, 8, 8, 7, 10, 8]
    header = " ".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
    if not options.testbed:
        print(f"{options.frames} frames of {options.height} x {options.width} tokens, {TEXT_TOKENS} text tokens")
        print(f"{'q, k':>10} {header} {ACCURACY}")
    with torch.inference_mode():
        for degree in options.degrees:
            heads_module.DEGREE = degree
            if options.testbed:
                for dtype in (torch.float32, torch.bfloat16):
                    print(f"degree {degree}, {dtype}")
                    testbed(options.device, dtype, options.size)
                continue
            for heads in options.heads:
                (fused_cost if options.fused else cost)(heads, options)


if __name__ == "__main__":
    main()
