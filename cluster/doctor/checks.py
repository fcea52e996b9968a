"""The one place to register a check: its name, in the table's order, and a function in a file of its kind."""

from cluster.doctor.check import Check, State

TORCH = {"torch": Check(place="cluster.doctor.gpus:torch_build", seconds=60.0)}  # before any other: they import it

# The longest ones: they begin while torch is imported. A job waits longer for a Ray that starts on a busy machine, and
# for an import: xfuser's takes 16 s where nothing of it is in the file cache.
RAY = {
    "Ray": Check(place="cluster.doctor.rays:ray_cluster", seconds=14.0, late=State.WARNING, everywhere=False),
}
XFUSER = {
    "xfuser": Check(
        place="cluster.doctor.libraries:xfuser",
        when=lambda needs: needs.may_use_gpu and (not needs.job or needs.shares_clips),
        seconds=28.0,
        late=State.WARNING,
    ),
}
EARLY = RAY | XFUSER

CHECKS = {
    "python": Check(place="cluster.doctor.system:python"),
    "GPUs": Check(place="cluster.doctor.gpus:gpus", when=lambda needs: needs.may_use_gpu, seconds=20.0),
    **XFUSER,
    "deepspeed": Check(
        place="cluster.doctor.libraries:deepspeed",
        when=lambda needs: not needs.job or needs.shard != "none",
        seconds=28.0,
        late=State.WARNING,
    ),
    "torchao": Check(
        place="cluster.doctor.libraries:torchao",
        when=lambda needs: not needs.job or needs.dtype == "float8",
        seconds=28.0,
        late=State.WARNING,
    ),
    "FlashAttention-3": Check(
        place="cluster.doctor.libraries:flash_3",
        when=lambda needs: needs.may_use_gpu,
        seconds=28.0,
        late=State.WARNING,
    ),
    "between ranks": Check(
        place="cluster.doctor.collectives:all_reduce",
        seconds=25.0,  # the first start of NCCL between eight GPUs takes long
        when=lambda needs: needs.ranks > 1 or needs.may_use_gpu,
    ),
    "/dev/shm": Check(place="cluster.doctor.places:shared_memory"),
    "open files": Check(place="cluster.doctor.system:open_files"),
    "memory": Check(place="cluster.doctor.system:memory"),
    "temporary files": Check(place="cluster.doctor.places:temporary"),
    "caches": Check(place="cluster.doctor.places:caches"),
    "prompts": Check(place="cluster.doctor.places:prompts", when=lambda needs: bool(needs.prompts), everywhere=False),
    "output": Check(place="cluster.doctor.places:output", when=lambda needs: bool(needs.output)),
    "ports": Check(place="cluster.doctor.rays:ports"),
    **RAY,
    "model": Check(place="cluster.doctor.models:model", when=lambda needs: needs.model is not None),
    "judge": Check(place="cluster.doctor.models:judge", when=lambda needs: needs.judge is not None),
    "hub": Check(place="cluster.doctor.models:hub", when=lambda needs: not needs.job),
    "mp4": Check(place="cluster.doctor.video:mp4"),
    "locale": Check(place="cluster.doctor.system:locale"),
    "clock": Check(place="cluster.doctor.system:clock"),
}
