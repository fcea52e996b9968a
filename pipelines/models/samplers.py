"""The samplers of flow models, all diffusers' own: UniPC, and Euler without and with new noise in each step.

    euler      x ← x + (σ' − σ)·v
    renoise    x ← (1 − σ')·(x − σ·v) + σ'·noise       (CausVid, arXiv 2412.07772; FastWan and rCM sample like this)

σ is a step's noise level, σ' the next one's, 0 after the last.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from pipelines.base import GenerationConfig, ModelFacts


class Euler(FlowMatchEulerDiscreteScheduler):
    """diffusers' own, in float32: by itself it leaves the latents in the dtype of the prediction."""

    def step(self, model_output: Tensor, *args: Any, **options: Any) -> Any:
        return super().step(model_output.float(), *args, **options)


def flow_scheduler(
    config: Mapping[str, Any], facts: ModelFacts, generation: GenerationConfig, device: torch.device
) -> Any:
    """The sampler at its start; `config` is the checkpoint's own sampler's."""
    if generation.sampler == "native" and not generation.sigmas:
        scheduler = UniPCMultistepScheduler.from_config(config, flow_shift=facts.flow_shift(generation))
        scheduler.set_timesteps(generation.steps, device=device)
    elif generation.sampler == "native":
        scheduler = UniPCMultistepScheduler.from_config(config, flow_shift=1.0)
        scheduler.set_timesteps(sigmas=np.array(generation.sigmas), device=device)
    else:
        scheduler = Euler(stochastic_sampling=generation.sampler == "renoise")
        scheduler.set_timesteps(sigmas=list(facts.sigmas(generation)), device=device)
    scheduler.set_begin_index(0)
    return scheduler
