"""torch, its CUDA against the driver, and the GPUs."""

from cluster.doctor.check import Finding, State, fails, ok, trouble
from cluster.doctor.needs import Needs
from numina.errors import MachineError

GIB = 2**30


def torch_build(needs: Needs) -> Finding:
    """Whether torch can be imported at all: every other verb begins with it."""
    try:
        import torch
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return fails(f"torch can't be imported ({said})", "install numina anew: make install")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return ok(f"torch {torch.__version__}, {build}")


def gpus(needs: Needs) -> Finding:
    """Every GPU adds up a small matrix; a job on this machine alone needs as many as its gangs have ranks."""
    import torch

    from pipelines.parallel.devices import check_gpu

    try:
        check_gpu()
    except MachineError as error:
        if needs.node_gpus == 0:
            return ok(f"none, and Ray counts none on this node: no gang comes here ({error.problem})")
        return trouble(error, State.FAILS if needs.needs_gpu else State.WARNING)
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            matrix = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
            right = (matrix @ matrix).sum().item() == 64**3
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:
            said = str(error).splitlines()[0][:200]
            return fails(
                f"GPU {index} ({torch.cuda.get_device_name(device)}) can't compute: {said}",
                "install a torch that is built for this GPU, stop who uses it alone, or restart the machine",
            )
        if not right:
            return fails(
                f"GPU {index} multiplies wrongly", "leave it out with CUDA_VISIBLE_DEVICES, and have it tested"
            )
        found.append((torch.cuda.get_device_name(device), free / GIB, total / GIB))
    names = ", ".join(sorted({f"{name}, {total:.0f} GiB" for name, _, total in found}))
    here = f"{len(found)} × {names}; {min(free for _, free, _ in found):.0f} GiB are free on the fullest"
    wanted = needs.ranks * needs.gangs if needs.is_local else needs.ranks
    if needs.needs_gpu and needs.is_local and wanted > len(found):
        return fails(
            f"{here}; the job's {needs.gangs} gangs of {needs.ranks} ranks need {wanted}",
            "use fewer gangs (parallel.gangs) or ranks (parallel.ulysses, ring, cfg)",
        )
    if needs.node_gpus is not None and needs.node_gpus < len(found):
        return fails(
            f"{here}; Ray counts {needs.node_gpus:g} on this node",
            "start Ray there with `ray start --num-gpus N`, or from an environment that sees the GPUs",
        )
    return ok(here)
