"""The tables of GPUs: shipped or one's own, each block with where it is from."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.planner import Gpu, load_gpu
from numina.errors import ConfigError
from tests.cluster.planner.conftest import H100


def test_an_unknown_gpu_lists_those_shipped() -> None:
    """A name without a table; capital letters don't matter."""
    assert load_gpu("H100") == H100
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name:\tmine\n  memory_gib: 24\n", "isn't YAML in line 2"),
        (b"name: mine\nname: yours\nmemory_gib: 24\n", "duplicate key name"),
        (b"- 1\n", "holds no mapping"),
        (b"\x8e\xff", "isn't YAML"),
        (b"name: mine\nmemory_gib: lots\n", "memory_gib is 'lots'; give a finite decimal number"),
        (b"name: mine\nmemory_gib: -4\n", "memory_gib is -4; give a number above 0"),
        (b"name: mine\nmemory_gib: 4\njudge: {rows: [{kind: clip, frames_per_second: 0}]}\n", "per_second is 0; give"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    """As a job's file is, with where the form is shown."""
    file = tmp_path / "gpu.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"gpu\.yaml.*{message}.*; h100\.yaml in .* shows the form"):
        load_gpu(str(file))


def test_the_shipped_table_says_where_it_is_from() -> None:
    """Each block names its machine and date; no combination stands there twice."""
    for block in (H100.forward, H100.decode, H100.encode):
        assert "H100" in block.measured
        assert "2026" in block.measured
    keys = [replace(row, milliseconds=1, gib=None) for row in H100.forward.rows]
    assert len(set(keys)) == len(keys)
