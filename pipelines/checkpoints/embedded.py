"""The checkpoints that come with the packages, by name."""

from pathlib import Path

_TESTBED = Path(__file__).parents[1] / "testbed"
EMBEDDED = {"testbed": _TESTBED / "weights", "scenes": _TESTBED / "weights-scenes"}
EMBEDDED_LORAS = {"testbed:4step": _TESTBED / "few-step" / "shapes.safetensors"}
"""LoRAs that come with the packages, by the path that a job gives them (pipelines/testbed/distil.py)."""
