"""`model.dtype=float8`: the blocks' linear layers multiply in 8-bit floats, by torchao; all else stays bfloat16.

Weights are held in float8 (e4m3) with a scale per row, inputs are cast as they come with a scale per token, so that it
doesn't matter which ranks hold which tokens. Cross-attention, norms, embeddings and the layers around the blocks are
left alone; self-attention's own kernel is `pipelines.attention.kernels`' to choose. It pays with compiled blocks alone,
which cast and scale in the kernels before; tests/benchmarks/RESULTS.md says what it does to speed and counts.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from numina.errors import ConfigError
from pipelines.parallel.libraries import TORCHAO, require

KEPT = ("attn2",)  # cross-attention, off which counts are read and by which they are guided: a fortieth of the time
ALIGNED = 16  # what float8 kernels need both sides of a matrix to be a multiple of


def quantize(blocks: Sequence[nn.Module], kept: Sequence[str] = KEPT) -> None:
    """In place; layers whose names begin with one of `kept` stay as they are.

    Raises MachineError where torchao can't be imported, ConfigError where the GPU has no float8.
    """
    require(TORCHAO)
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    # torchao would set options of the compiler for the whole process: a search among kernels that takes minutes at 14B,
    # and TensorFloat-32 for everything in float32
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    for block in blocks:
        try:
            quantize_(block, config, filter_fn=partial(quantizable, kept=kept))
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(f"model.dtype=float8: {error}; use bfloat16") from error


def quantizable(layer: nn.Module, name: str, kept: Sequence[str] = KEPT) -> bool:
    """Whether a layer of a block is one of those."""
    left = name.startswith(tuple(kept))
    return isinstance(layer, nn.Linear) and not left and not any(side % ALIGNED for side in layer.weight.shape)
