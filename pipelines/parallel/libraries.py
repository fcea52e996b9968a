"""Libraries that some jobs need, and what is said where one can't be imported: it isn't there, or of another build."""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from numina.errors import MachineError

GPU_EXTRA = "pip install 'numina-video[gpu]'"


@dataclass(frozen=True)
class Needed:
    """A library, by its distribution's name and the modules that numina imports of it."""

    name: str
    modules: tuple[str, ...]
    install: str  # how to have it, or to do without


XFUSER = Needed(
    "xfuser",
    ("xfuser", "xfuser.core.distributed", "xfuser.model_executor.layers.usp"),
    f"{GPU_EXTRA} on every node with an NVIDIA GPU, or parallel.engine=diffusers",
)
TORCHAO = Needed("torchao", ("torchao.quantization",), f"{GPU_EXTRA} on every node, or model.dtype=bfloat16")
DEEPSPEED = Needed("deepspeed", ("deepspeed",), "pip install numina-video on every node, or memory.shard=none")
FLASH_3 = Needed("fa3-fwd", ("fa3_fwd_interface",), f"{GPU_EXTRA}, or parallel.attention=auto")


def require(needed: Needed) -> None:
    """Imports a library. Raises MachineError where that fails, whatever a wrong build raises."""
    for module in needed.modules:
        try:
            import_module(module)
        except Exception as error:
            raise import_trouble(needed, error) from error


def import_trouble(needed: Needed, error: Exception) -> MachineError:
    """What is said of a library whose import raised this."""
    own = needed.modules[0].partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == own:
        return MachineError(f"{needed.name} isn't installed here", needed.install)
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return MachineError(
        f"{needed.name} {installed(needed.name)} can't be imported with torch {torch.__version__} ({said})",
        f"install the builds that were tested together: {needed.install}",
    )


def installed(name: str) -> str:
    """A distribution's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "of an unknown version"
