"""The tables of GPUs: shipped or one's own, each block with where it is from."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.planner import Gpu, load_gpu
from numina.errors import ConfigError
from tests.cluster.planner.conftest import H100


def test_an_unknown_gpu_lists_those_shipped() -> None:
    """A name without a table."""
    with pytest.raises(ConfigError, match="those shipped: h100"):
        load_gpu("h9000")


def test_a_table_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    """Name and memory are enough; a mistyped key is an error that names it."""
    file = tmp_path / "gpu.yaml"
    file.write_text("name: mine\nmemory_gib: 48\n")
    assert load_gpu(str(file)) == Gpu(name="mine", memory_gib=48)
    file.write_text("name: mine\nmemory_gib: 48\nforwards: {}\n")
    with pytest.raises(ConfigError, match="forwards"):
        load_gpu(str(file))


def test_the_shipped_table_says_where_it_is_from() -> None:
    """Each block names its machine and date; no combination stands there twice."""
    for block in (H100.forward, H100.decode, H100.encode):
        assert "H100" in block.measured
        assert "2026" in block.measured
    keys = [replace(row, milliseconds=0, gib=None) for row in H100.forward.rows]
    assert len(set(keys)) == len(keys)
