"""The embedded counting models: small text-to-video models of Wan's architecture, over worlds that count exactly.

`world` draws scenes and prompts of flat shapes, `scenes` (with `creatures`) the harder ones; `worlds` names both.
`counter` counts what a video shows, `model` builds the untrained pipeline, `train` trains it, `evaluate` measures it.
WEIGHTS, of the model of shapes, is an ordinary diffusers folder that `WanPipeline.from_pretrained` loads.
"""

from pathlib import Path

from pipelines.checkpoints.embedded import EMBEDDED

WEIGHTS = EMBEDDED["testbed"]
DEMO_PROMPTS = {
    "testbed:demo": Path(__file__).parent / "demo.parquet",
    "scenes:demo": Path(__file__).parent / "demo-scenes.parquet",
}
"""Small prompt sets of the models' worlds, by the names that a job gives them."""
