"""A small job on the tiny checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.job import JobConfig, load_job
from cluster.promptset import make_prompts

PROMPTS = [
    {"id": "pair", "prompt": "three red circles and two blue squares moving on a grey background", "source": "test"},
    {"id": "single", "prompt": "one green cross drifting on a white background", "seed": 7, "source": "test"},
]
TINY = ["generation.height=64", "generation.width=64", "generation.steps=4", "model.device=cpu"]


@pytest.fixture
def tiny_job(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., JobConfig]:
    """A job over two prompts, with overrides."""
    make_prompts(PROMPTS, str(tmp_path / "prompts.parquet"))

    def job(*overrides: str) -> JobConfig:
        places = [f"prompts={tmp_path}/prompts.parquet", f"output={tmp_path}/out", f"model.path={tiny_checkpoint}"]
        return load_job("demo", [*places, *TINY, *overrides])

    return job
