"""numina from Python: one prompt to one clip.

from cluster.api import generate

clip = generate("three red circles and two blue squares moving on a grey background", seed=1)
clip.save("video.mp4")
"""

from collections.abc import Sequence
from functools import lru_cache

from cluster.job.config import load_job
from cluster.keys import SEEDS
from numina.errors import InputError
from numina.prompts.targets import Target
from pipelines.base import VaeDtype, VideoModel
from pipelines.checkpoints.lora import LoraConfig
from pipelines.models.registry import load_model
from pipelines.sampling.clip import Clip
from pipelines.sampling.denoise import Progress
from pipelines.sampling.generate import generate as generate_clip


def generate(
    prompt: str,
    *,
    config: str = "testbed",
    seed: int = 0,
    targets: Sequence[Target] | None = None,
    overrides: Sequence[str] = (),
    plain: bool = False,
    progress: Progress | None = None,
) -> Clip:
    """A clip with the asked counts, in this process, with the model and settings of a shipped or own job file.

    Targets are parsed from the prompt when None; `plain` generates without NUMINA. The model stays loaded for the next
    call. Raises an InputError for what can't be asked.
    """
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed is {seed}; give a whole number from 0 to 2**63 - 1")
    job = load_job(config, overrides)
    model, vae_dtype = job.model, job.generation.vae_dtype
    return generate_clip(
        _model(model.path, model.dtype, model.device, model.revision, tuple(model.loras), vae_dtype),
        prompt,
        targets=targets,
        seed=seed,
        generation=job.generation,
        method=None if plain else job.method,
        progress=progress,
    )


@lru_cache(maxsize=1)
def _model(
    path: str, dtype: str, device: str, revision: str | None, loras: tuple[LoraConfig, ...], vae_dtype: VaeDtype
) -> VideoModel:
    return load_model(path, dtype=dtype, device=device, revision=revision, loras=loras, vae_dtype=vae_dtype)
