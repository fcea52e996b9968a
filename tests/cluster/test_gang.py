"""Gangs: what a cluster can't place is said in numbers, not waited for."""

import pytest
import ray

from cluster.gang import Gang, GangSpec
from numina.errors import GangError
from pipelines.parallel import ParallelConfig
from tests.pipelines.conftest import GENERATION


def test_a_gang_without_room_says_what_it_needs_and_what_is_free() -> None:
    """Two ranks on a cluster of one core: an error within the timeout, with the remedy."""
    spec = GangSpec(
        model_path="testbed",
        dtype="float32",
        device="cpu",
        generation=GENERATION,
        parallel=ParallelConfig(ulysses=2),
        cpus_per_rank=1,
    )
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(GangError, match=r"gang-0 found no place within 2 s: it needs 2 × .*parallel\.ulysses"):
            Gang("gang-0", spec).start(timeout=2)
    finally:
        ray.shutdown()
