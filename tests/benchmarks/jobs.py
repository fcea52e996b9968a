"""What a job's ranks work with, for benchmarks that run without them."""

from cluster.job.config import JobConfig
from pipelines.base import VideoModel
from pipelines.models.registry import load_model


def job_model(job: JobConfig, device: str) -> VideoModel:
    """The job's model on one device, as a rank loads it: its revision, LoRAs and the decoder's precision, too."""
    return load_model(
        job.model.path,
        dtype=job.model.dtype,
        device=device,
        revision=job.model.revision,
        loras=job.model.loras,
        vae_dtype=job.generation.vae_dtype,
    )
