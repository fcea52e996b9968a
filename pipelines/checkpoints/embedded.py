"""The checkpoints that come with the packages, by name."""

from pathlib import Path

EMBEDDED = {"testbed": Path(__file__).parents[1] / "testbed" / "weights"}
