"""`numina plan`: what a job would take of a cluster, and how long, from configs and measured tables alone."""

from dataclasses import dataclass

from omegaconf import OmegaConf

from cluster.driver import JobPlan
from cluster.job import config_folder
from numina.config import MethodConfig

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `numina plan` prints."""

    gangs: int
    ranks_per_gang: int
    engine: str
    tokens: int
    weights_gib: float  # of the transformer on each rank
    videos: int
    seconds_per_video: float | None  # of one gang, denoising only; None where nothing comparable was measured
    measured_on: str | None

    @property
    def hours(self) -> float | None:
        if self.seconds_per_video is None:
            return None
        return self.videos * self.seconds_per_video / self.gangs / 3600


def estimate(plan: JobPlan, gpu: str = "h100") -> Estimate:
    """The job's size, and its time where a forward pass of this model and shape was measured on such a GPU.

    A guided video is counted as identification plus a whole second generation: the upper bound.
    """
    job, model = plan.job, plan.model
    tokens = model.grid(job.generation).tokens
    table = OmegaConf.load(config_folder() / "measured" / f"{gpu}.yaml")
    shape = (model.depth, model.heads, tokens, job.parallel.ulysses)
    forward = next(
        (
            row.milliseconds / 1000
            for row in table.forward
            if plan.device == "cuda" and (row.depth, row.heads, row.tokens, row.ranks) == shape
        ),
        None,
    )
    generation, methods = job.generation, job.methods.values()
    passes = 2 if generation.guidance_scale > 1 else 1
    phases = [generation.steps + (_identify_steps(method, generation.steps) if method else 0) for method in methods]
    steps = sum(phases) / len(phases)
    return Estimate(
        gangs=job.parallel.gangs,
        ranks_per_gang=job.parallel.ulysses,
        engine=job.parallel.resolved_engine,
        tokens=tokens,
        weights_gib=model.transformer_bytes / GIB,
        videos=sum(1 for _ in plan.tasks()),
        seconds_per_video=forward * passes * steps if forward else None,
        measured_on=str(table.machine) if forward else None,
    )


def _identify_steps(method: MethodConfig, steps: int) -> int:
    """Denoising steps until the layout is known."""
    kept = method.identify.schedule(steps)
    return kept.index(method.identify.capture_step(steps)) + 1
