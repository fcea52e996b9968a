"""The embedded counting model: a small text-to-video model of Wan's architecture, over a world that counts exactly.

`world` draws scenes and prompts, `counter` counts what a video shows, `model` builds the untrained pipeline, `train`
trains it, `evaluate` measures it. WEIGHTS is an ordinary diffusers folder that `WanPipeline.from_pretrained` loads.
"""

from pipelines.checkpoints.embedded import EMBEDDED

WEIGHTS = EMBEDDED["testbed"]
