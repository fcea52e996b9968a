"""What float8 blocks do to what is read off the attention, on the embedded model, without a GPU that has them.

    python -m tests.benchmarks.float8_reading --prompts 24

float8's numbers, not its speed: weights are rounded to e4m3 with a scale per row, inputs with a scale per token, as
`pipelines.checkpoints.quantize` has torchao do, and products are summed in float32, as the tensor cores do. Held-out
prompts, the preset's identification with and without; printed are the share of clips whose identified counts are the
same, the correlation of the nouns' maps, and the counts of the clips where they differ.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cluster.job.config import load_job
from numina.layout import Capture, identify_layout
from numina.prompts.targets import Target
from numina.prompts.tokens import locate_tokens
from pipelines.checkpoints.quantize import quantizable
from pipelines.models.registry import load_model
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from pipelines.testbed.world import heldout_prompts

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def rounded(x: Tensor) -> Tensor:
    """Each row of the last dimension in float8 with a scale of its own, back in x's dtype."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


@contextmanager
def emulated(blocks: Sequence[nn.Module]) -> Iterator[int]:
    """The layers that `quantize` takes, with float8's rounding."""

    def forward(layer: Any, x: Tensor) -> Tensor:
        return nnf.linear(rounded(x), layer.rounded_weight, layer.bias)

    layers = [layer for block in blocks for name, layer in block.named_modules() if quantizable(layer, name)]
    for layer in layers:
        layer.rounded_weight = rounded(layer.weight.detach())
        layer.forward = MethodType(forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward, layer.rounded_weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1000, help="of the prompts")
    parser.add_argument("--preset", default="closed")
    parser.add_argument("--batch", type=int, default=6)
    options = parser.parse_args()
    job = load_job("testbed", [f"method.preset={options.preset}"])
    model = load_model("testbed", device="cpu")
    prompts = heldout_prompts(options.prompts, options.seed)
    same, correlations = [], []
    for first in range(0, len(prompts), options.batch):
        some = prompts[first : first + options.batch]
        texts = model.encode([prompt.text for prompt in some], [""] * len(some), job.generation)
        targets = [[Target(target.noun, target.count) for target in prompt.targets] for prompt in some]
        spans = [locate_tokens(text.prompt, own, text.offsets) for text, own in zip(texts, targets, strict=True)]
        seeds = range(first, first + len(some))

        def read(texts: Any = texts, spans: Any = spans, seeds: Any = seeds) -> list[Capture]:
            return denoise.identify(model, ALONE, texts, spans, seeds, job.generation, job.method)[1]

        exact = read()
        with emulated(model.blocks) as layers:
            rough = read()
        for prompt, one, other in zip(some, exact, rough, strict=True):
            counts = [identify_layout(seen, job.method.identify).clip_counts().tolist() for seen in (one, other)]
            same.append(counts[0] == counts[1])
            correlations.append(np.corrcoef(one.responses.ravel(), other.responses.ravel())[0, 1])
            if not same[-1]:
                print(f"{prompt.text}: {counts[0]}, float8 {counts[1]}", flush=True)
    print(
        f"{options.preset}, {layers} layers: {sum(same)} of {len(same)} clips read the same counts, maps correlate"
        f" {np.mean(correlations):.4f} (least {min(correlations):.4f})"
    )


if __name__ == "__main__":
    main()
