"""A process that Ray's workers are forked from: `python server.py SOCKET`. It imports nothing before one asks.

The one whose socket is called `bare` leaves out the libraries that read the hub's variables, and serves those workers
whose variables differ in these.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import struct
import sys
from typing import Any

# What ranks, task processes and judges spend their start on. Nothing of Ray, whose settings are read when it is
# imported, and nothing of our own.
BARE = (
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "sklearn.cluster",
    "av",
    "fsspec",
    "ftfy",
    "jaxtyping",
    "jinja2",
    "lemminflect",
    "omegaconf",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
)
OF_THE_HUB = (
    "diffusers",
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.transformer_wan",
    "diffusers.pipelines.wan.pipeline_wan",
    "transformers.models.umt5.modeling_umt5",
    "transformers.models.auto.tokenization_auto",
    "peft",
)
OWN = ("RAY_", "NUMINA_", "PYTEST_", "SPT_", "AWS_", "GLOO_")  # begin variables that no import above reads
HUB = "HF_"  # begins those that only imports of the hub's libraries read
OTHERS = {"PWD", "OLDPWD", "SHLVL", "_", "PYTHONUNBUFFERED", "LINES", "COLUMNS"}
OTHERS |= {"PYTHONBREAKPOINT"}  # Ray sets it in a process that has joined one
OTHERS |= {"PATH"}  # where commands are found
# Libraries set these when they are imported, as the tests' process has.
OTHERS |= {"TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}
LONGEST = 2**20  # bytes of what a worker says of itself


def differs(one: dict[str, str], other: dict[str, str], own: tuple[str, ...]) -> bool:
    """Whether a library may be imported otherwise in one environment than in the other; by `own` variables none is."""
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return any(name not in OTHERS and not name.startswith(own) for name in names)


def serve(
    listening: socket.socket, libraries: tuple[str, ...], own: tuple[str, ...]
) -> tuple[dict[str, Any], list[int]]:
    """Forks until it is ended. Returns in each fork, with what that is to be and its three streams."""
    ready, environment = False, dict(os.environ)  # libraries change it
    mounts = os.readlink("/proc/self/ns/mnt")
    parent = os.getppid()
    listening.settimeout(5)
    while True:
        try:
            asking, _ = listening.accept()
        except TimeoutError:
            if os.getppid() != parent:  # the tests were killed
                sys.exit()
            continue
        with asking:
            data, control, _, _ = asking.recvmsg(LONGEST, socket.CMSG_SPACE(3 * 4))
            streams = array.array("i")
            for _, _, sent in control:
                streams.frombytes(sent)
            _, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            me = json.loads(data)
            if user != os.getuid() or me["mounts"] != mounts or differs(me["environment"], environment, own):
                asking.send(b"n")
            else:
                if not ready:
                    for library in libraries:
                        importlib.import_module(library)
                    gc.collect()
                    gc.freeze()  # a collection in a fork would copy the pages of all these objects
                    ready = True
                if os.fork() == 0:
                    with open(f"{os.path.dirname(sys.argv[1])}/{os.getpid()}", "w") as note:
                        note.write(f"{me['raylet']} {os.getppid()}")
                    listening.close()
                    asking.send(b"y")
                    return me, list(streams)
        for stream in streams:
            os.close(stream)


def become(me: dict[str, Any], streams: list[int]) -> None:
    """Takes the place of the process that has asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.chdir(me["folder"])
    with contextlib.suppress(ValueError):  # more files than this process may have
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(me["files"]))
    os.nice(max(0, me["nice"] - os.nice(0)))
    os.environ.clear()
    os.environ.update(me["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.orig_argv[1:] = sys.argv[:] = me["words"]
    sys.path[:] = [os.path.dirname(me["words"][0]), *me["path"]]
    runpy.run_path(me["words"][0], run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that end leave nothing behind
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(sys.argv[1])
        listening.listen(64)
        bare = os.path.basename(sys.argv[1]) == "bare"
        request = serve(listening, *((BARE, (*OWN, HUB)) if bare else (BARE + OF_THE_HUB, OWN)))
    become(*request)
