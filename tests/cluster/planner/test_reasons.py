"""Every choice has its reason."""

from cluster.planner import reasons
from tests.cluster.planner.conftest import SMALL, Plan


def test_every_choice_has_its_reason(planner: Plan) -> None:
    """A sentence for each of gangs, split, sharding, encoder and time; an estimate is called one there, too."""
    asked = planner()
    found = asked.candidates(8, objective="latency")
    text = "\n".join(reasons(asked, found, 8, "latency"))
    for start in ("gangs 1:", "cfg 2:", "ulysses 4:", "shard none:", "text_encoder gang:", "time: at most", "forward:"):
        assert f"\n{start}" in f"\n{text}"
    assert "estimated from one branch" in text
    assert "parallel.compile=true would save" in text
    small = planner(gpu=SMALL)
    text = "\n".join(reasons(small, small.candidates(8), 8, "throughput"))
    assert "shard zero3: peak" in text
    assert "text_encoder apart:" in text
    assert "no forward of 40 blocks of 40 heads was measured" in text
