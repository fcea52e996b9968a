"""How fast self-attention heads are scored on a CPU, beside a plain randomised SVD of each head, as the authors do it.

    python -m tests.benchmarks.heads [--heads 12] [--frames 1] [--threads 1]

Per grid and kind of q and k: milliseconds of CPU time per head of both ways, from q and k to score, the least of some
repeats in turn, and how often ours is as fast. And the largest error of an image (of a range of 1), among maps whose
first four singular values are 1 % apart: ours and the SVD's against float64. Fixed seeds.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from numina import heads as heads_module
from numina.config import IdentifyConfig
from numina.heads import GREY_WEIGHTS, frame_attention, score_heads
from tests.benchmarks.capture_cost import exact_components, random_pair, structured_pair

GRIDS = ((30, 52), (15, 26), (16, 16))  # Wan2.1 at 480p, half its sides, the embedded model
CONFIG = IdentifyConfig()


def plain(q: Tensor, k: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images [F, N, H, W, 3] by `torch.svd_lowrank` of each head's centred map, and their scores, one by one."""
    images = torch.empty(*q.shape[:2], *grid, 3)
    for frame in range(q.shape[0]):
        for head in range(q.shape[1]):
            attention = frame_attention(q[frame, head : head + 1], k[frame, head : head + 1])[0]
            u, s, _ = torch.svd_lowrank(attention - attention.mean(dim=0), q=3)
            components = u * s
            low, high = components.amin(dim=0), components.amax(dim=0)
            image = ((components - low) / (high - low)).unflatten(0, grid)
            grey = image @ image.new_tensor(GREY_WEIGHTS)
            score = CONFIG.contrast_weight * grey.std()
            score += CONFIG.structure_weight * heads_module._block_variance(grey[None], CONFIG.structure_blocks)[0]
            score += CONFIG.edge_weight * heads_module._edge_strength(grey[None])[0]
            score.item()
            images[frame, head] = image
    return images


def cpu_seconds(ways: list[Callable[[], object]], repeats: int) -> list[float]:
    """The least CPU time of each, in turn: others on the machine disturb it less than the clock on the wall."""
    least = [float("inf")] * len(ways)
    for _ in range(repeats):
        for i, work in enumerate(ways):
            began = time.process_time()
            work()
            least[i] = min(least[i], time.process_time() - began)
    return least


def errors(q: Tensor, k: Tensor, grid: tuple[int, int]) -> tuple[float, float]:
    """The largest error of ours and of the plain way, whose signs are free, in the first frame."""
    ours, svd = score_heads(q[:1], k[:1], grid, CONFIG)[1][0], plain(q[:1], k[:1], grid)[0]
    worst = [float("nan")] * 2  # where no map is that clear
    for head in range(q.shape[1]):
        exact, gap = exact_components(frame_attention(q[0, head : head + 1], k[0, head : head + 1])[0])
        if gap < 0.02:  # of variances
            continue
        worst[0] = max((ours[head].flatten(0, 1) - exact).abs().max().item(), worst[0])
        own = svd[head].flatten(0, 1)
        either = torch.minimum((own - exact).abs().amax(dim=0), (1 - own - exact).abs().amax(dim=0))
        worst[1] = max(either.max().item(), worst[1])
    return worst[0], worst[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.heads} heads, {options.frames} frames")
    print(f"{'grid':>8} {'q, k':>10} {'svd ms':>8} {'ours ms':>8} {'ratio':>6} {'our error':>10} {'svd error':>10}")
    for grid in GRIDS:
        for kind, make in {"structured": structured_pair, "random": random_pair}.items():
            q, k = (x.float() for x in make(options.frames, options.heads, grid, "cpu"))
            ways = [lambda q=q, k=k, g=grid: plain(q, k, g), lambda q=q, k=k, g=grid: score_heads(q, k, g, CONFIG)]
            svd, ours = (1e3 * s / options.heads / options.frames for s in cpu_seconds(ways, options.repeats))
            error, svd_error = errors(q, k, grid)
            print(
                f"{grid[0]:>4}x{grid[1]:<3} {kind:>10} {svd:>8.2f} {ours:>8.2f} {svd / ours:>6.2f} {error:>10.1e}"
                f" {svd_error:>10.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
