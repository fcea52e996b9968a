"""DeepSpeed ZeRO-3 for inference: a module's parameters spread over the ranks of a gang, gathered layer by layer.

Each rank keeps an equal share of every parameter, on its device or in host memory. Hooks gather a layer's parameters
just before it runs and let them go after it. Gathering is collective: all ranks must call the same layers in the same
order. The module stays what it was, with hooks.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from numina.errors import ConfigError
from pipelines.checkpoints.loading import Placement, Whole, in_gang
from pipelines.private.deepspeed import build_no_ops, share

PERSISTENT = 100_000  # elements, DeepSpeed's default: a parameter up to this size stays gathered once it was used


def placement(shard: str, device: torch.device) -> Placement:
    """Where a model's parameters go under `memory.shard`. Raises ConfigError where sharding can't be had."""
    if shard == "none":
        return Whole()
    if shard == "zero3" and not in_gang():
        raise ConfigError(
            "memory.shard is zero3, which spreads the weights over a gang's ranks, but this is a single process; use"
            " none, or zero3_offload to keep them in host memory"
        )
    return Zero3(device, offload=shard == "zero3_offload")


class Zero3:
    """Every rank has a share of every parameter. It works without DeepSpeed's engine, which would train the module.

    With `offload` the shares are in host memory, pinned where the device is a GPU. A single process may have that, too:
    its share is the whole.
    """

    def __init__(self, device: torch.device, *, offload: bool):
        deepspeed = import_deepspeed(device)
        zero: dict[str, Any] = {"stage": 3, "memory_efficient_linear": False}  # else it replaces torch's own linear
        if offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        self.config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}  # asked for, and not used
        join_deepspeed(deepspeed, device)
        self.shares = deepspeed.zero.Init(data_parallel_group=dist.group.WORLD, config_dict_or_path=self.config)

    def parameter(self, whole: Tensor) -> nn.Parameter:
        """Keeps this rank's share of a tensor that all ranks hold.

        `Init(module=…)` would do the same and broadcast each tensor once more.
        """
        parameter: Any = nn.Parameter(whole, requires_grad=False)
        share(self.shares, parameter)
        parameter.partition()
        kept: nn.Parameter = parameter
        return kept

    def complete(self, module: nn.Module) -> None:
        """Installs the hooks that gather and let go."""
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.utils.timer import NoopTimer

        hooks = DeepSpeedZeRoOffload(
            module, timers=NoopTimer(), ds_config=self.config, param_persistence_threshold=PERSISTENT
        )
        for hook in hooks.backward_hooks:  # nothing goes backward, and they wrap each layer's inputs and outputs
            hook.remove()


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for one kind of device, quietly; it takes seconds. Raises ConfigError where it isn't installed, or
    serves another kind of device in this process."""
    with told_device(device):
        try:
            import deepspeed
        except ImportError as error:
            raise ConfigError(
                f"memory.shard needs DeepSpeed, which can't be imported here ({error}); install it with"
                " `pip install deepspeed`, or use memory.shard=none"
            ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor", category=FutureWarning)
    serves = deepspeed.accelerator.get_accelerator().device_name()
    if serves != device.type:
        raise ConfigError(
            f"DeepSpeed is set up for {serves} in this process, but the model is for {device.type}; load it in a"
            " separate process, or use memory.shard=none"
        )
    return deepspeed


@contextmanager
def told_device(device: torch.device) -> Iterator[None]:
    """Says what DeepSpeed is imported for: by itself it takes any GPU it sees, or warns that it sees none."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = device.type
    try:
        yield
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]
        else:
            os.environ["DS_ACCELERATOR"] = before


def join_deepspeed(deepspeed: Any, device: torch.device) -> None:
    """Makes DeepSpeed use the process group that is there; a single process gets one of its own."""
    if device.type == "cuda":
        # DeepSpeed takes the device's number from here, also later. A launcher's may count GPUs that this process
        # doesn't see.
        os.environ["LOCAL_RANK"] = str(device.index if device.index is not None else torch.cuda.current_device())
    else:
        os.environ["LOCAL_RANK"] = "0"
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    build_no_ops(deepspeed)  # torch's own serve
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
