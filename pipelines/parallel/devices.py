"""GPUs as torch sees them, and why it sees none: a driver, a variable, a build, or no GPU at all.

A process that fails by one of these says it in the words that `numina doctor` has for it.
"""

import logging
import os
import re
import warnings
from pathlib import Path

from numina.errors import MachineError

log = logging.getLogger(__name__)

DRIVER = Path("/proc/driver/nvidia")  # there while NVIDIA's kernel module is loaded


def gpus_installed() -> int:
    """NVIDIA GPUs of this machine that the driver shows, whatever the environment hides. 0 in some containers."""
    return len([*(DRIVER / "gpus").glob("*")])


def check_gpu() -> None:
    """Raises MachineError where torch can't compute on a GPU here."""
    import torch  # seconds, which who only looks at a model shouldn't wait for

    with warnings.catch_warnings(action="ignore"):  # of the driver: the error says it
        if torch.cuda.is_available():
            return
    try:
        torch.cuda.init()  # says why
    except (RuntimeError, AssertionError) as error:
        raise gpu_trouble(str(error)) from error
    raise gpu_trouble("No CUDA GPUs are available")


def gpu_usable() -> bool:
    """Whether torch can compute on a GPU here. Warns where the machine has one that nobody has hidden, and it can't."""
    try:
        check_gpu()
    except MachineError as error:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not hidden and gpus_installed():
            log.warning("this machine's GPUs can't be used, the CPU is instead: %s", error)
        return False
    return True


def gpu_trouble(said: str) -> MachineError:
    """What is wrong, after what torch said when it began with CUDA."""
    import torch

    visible, cuda = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.version.cuda
    if cuda is None:
        return MachineError(
            f"torch {torch.__version__} is a build without CUDA", "install numina anew on a machine with an NVIDIA GPU"
        )
    if old := re.search(r"driver on your system is too old \(found version (\d+)\)", said):
        found = f"{int(old[1]) // 1000}.{int(old[1]) % 1000 // 10}"
        return MachineError(
            f"the NVIDIA driver is for CUDA {found} at most, and torch {torch.__version__} needs CUDA {cuda}",
            f"update the driver, or install a torch that was built for CUDA {found}",
        )
    if "forward compatibility" in said or "insufficient" in said:
        return MachineError(
            f"the NVIDIA driver doesn't fit the CUDA {cuda} of torch {torch.__version__} ({_first_line(said)})",
            "update the driver and restart the machine; in a container, take away its own cuda-compat",
        )
    if visible is not None and not visible.strip():
        if "RAY_JOB_ID" in os.environ or "RAY_RAYLET_PID" in os.environ:
            return MachineError(
                "CUDA_VISIBLE_DEVICES is '' in this Ray worker: Ray gave it no GPU",
                "start Ray on this node where `nvidia-smi` shows GPUs, or with `ray start --num-gpus N`",
            )
        return MachineError(
            "CUDA_VISIBLE_DEVICES is '', which hides all GPUs", "unset it, or name GPUs such as CUDA_VISIBLE_DEVICES=0"
        )
    if "no NVIDIA driver" in said or not (DRIVER.exists() or Path("/dev/nvidiactl").exists()):
        return MachineError(
            "there is no NVIDIA driver here",
            "use a machine with an NVIDIA GPU, start a container with --gpus all, or set model.device=cpu",
        )
    if visible is not None:
        return MachineError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, and the driver shows {gpus_installed()} GPUs, counted from 0",
            "name GPUs that `nvidia-smi -L` lists, or unset it",
        )
    return MachineError(
        f"torch sees no GPU ({_first_line(said)})",
        "see whether `nvidia-smi` works here, restart the machine, or start the container with --gpus all",
    )


def _first_line(said: str) -> str:
    return said.strip().splitlines()[0][:200] if said.strip() else "no reason given"
