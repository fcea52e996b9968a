"""Libraries that some jobs need."""

from cluster.doctor.check import Finding, State, ok, trouble
from cluster.doctor.needs import Needs
from numina.errors import MachineError
from pipelines.parallel.libraries import DEEPSPEED, FLASH_3, TORCHAO, XFUSER, Needed, installed, require
from pipelines.parallel.support import resolve_engine


def xfuser(needs: Needs) -> Finding:
    """Needed where ranks on GPUs share a clip's tokens."""
    engine = resolve_engine(needs.engine, needs.device, needs.sequence_ranks)
    return _library(XFUSER, needed=needs.job and engine == "xfuser" and needs.needs_gpu)


def deepspeed(needs: Needs) -> Finding:
    return _library(DEEPSPEED, needed=needs.shard != "none" and needs.node_gpus != 0)


def torchao(needs: Needs) -> Finding:
    return _library(TORCHAO, needed=needs.dtype == "float8" and needs.needs_gpu)


def flash_3(needs: Needs) -> Finding:
    """The fastest attention on an H100; without it, xfuser and diffusers take another."""
    return _library(FLASH_3, needed=needs.attention == "flash_3")


def _library(library: Needed, needed: bool) -> Finding:
    try:
        require(library)
    except MachineError as error:
        return trouble(error, State.FAILS if needed else State.WARNING)
    return ok(f"{library.name} {installed(library.name)}")
