"""What a job's gangs, encoders and judges are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.evaluation.verdicts import placed
from cluster.job.acceptance import Acceptance
from cluster.job.checks import check_combination
from cluster.job.judge import judge_config
from cluster.planner import planned_gib
from cluster.workers.encoder import EncoderSpec
from cluster.workers.judge import JudgeSpec
from cluster.workers.rank import GangSpec
from cluster.workers.tasks import Output
from pipelines.models.registry import place_free
from pipelines.models.small import small

if TYPE_CHECKING:
    from cluster.job.prepared import PreparedJob
    from pipelines.base import GenerationConfig


def gang_spec(prepared: PreparedJob) -> GangSpec:
    """Of the first gang: it makes a preflight, where one is asked for."""
    job = prepared.job
    return GangSpec(
        device=prepared.device,
        methods=tuple(job.methods.values()),
        parallel=job.parallel,
        memory=job.memory,
        cpus_per_rank=job.cluster.cpus_per_rank,
        keep_latents=job.latents,
        loras=tuple(replace(lora, path=place_free(lora.path)) for lora in job.model.loras),
        planned_gib=planned_gib(prepared),
        preflight=preflight_clip(prepared),
        preflight_always=job.cluster.preflight == "always",
        **_patience(prepared),
        **_model(prepared),
    )


def encoder_spec(prepared: PreparedJob) -> EncoderSpec:
    cluster = prepared.job.cluster
    return EncoderSpec(cpus=cluster.encoder_cpus, gpus=cluster.encoder_gpus, **_patience(prepared), **_model(prepared))


def judge_spec(prepared: PreparedJob) -> JudgeSpec:
    verify = prepared.job.verify
    return JudgeSpec(
        judge=placed(judge_config(verify.judge, prepared.job.judge), verify.gpus),
        output=Output.of(prepared),
        acceptance=Acceptance.of(verify),
        cpus=verify.cpus,
        gpus=verify.gpus,
        **_patience(prepared),
    )


def _patience(prepared: PreparedJob) -> dict[str, Any]:
    cluster = prepared.job.cluster
    return {
        "start_timeout": cluster.start_timeout,
        "step_timeout": cluster.step_timeout,
        "end_timeout": cluster.end_timeout,
        "log_format": cluster.log_format,
    }


def _model(prepared: PreparedJob) -> dict[str, Any]:
    job = prepared.job
    return {
        "model_path": place_free(job.model.path),
        "model_revision": job.model.revision,
        "dtype": prepared.dtype,
        "generation": job.generation,
    }


def preflight_clip(prepared: PreparedJob) -> GenerationConfig | None:
    """The small clip that is made before the fleet starts; None where none is asked for."""
    job = prepared.job
    if job.cluster.preflight == "never" or (job.cluster.preflight == "auto" and prepared.device != "cuda"):
        return None

    def fits(generation: GenerationConfig) -> None:
        check_combination(replace(job, generation=generation), prepared.model, prepared.device)

    return small(job.generation, prepared.model, fits)
