"""`model.dtype=float8`: the blocks' linear layers multiply in 8-bit floats, by torchao; all else stays bfloat16.

Weights are held in float8 (e4m3) with a scale per row, inputs are cast as they come with a scale per token. Attention,
norms, embeddings and the layers around the blocks are left alone. It pays with compiled blocks alone, which cast and
scale in the kernels before; tests/benchmarks/RESULTS.md says what it does to speed and to what attention shows.
"""

from collections.abc import Sequence

from torch import nn

from numina.errors import ConfigError
from pipelines.parallel.libraries import TORCHAO, require

ALIGNED = 16  # what float8 kernels need both sides of a matrix to be a multiple of


def quantize(blocks: Sequence[nn.Module]) -> None:
    """In place. Raises MachineError where torchao can't be imported, ConfigError where the GPU has no float8."""
    require(TORCHAO)
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    for block in blocks:
        try:
            quantize_(block, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=quantizable)
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(f"model.dtype=float8: {error}; use bfloat16") from error


def quantizable(layer: nn.Module, name: str) -> bool:
    """Whether a layer is one of those."""
    return isinstance(layer, nn.Linear) and not any(side % ALIGNED for side in layer.weight.shape)
