"""What Prometheus gets of a job: true values at a real endpoint of Ray; and a dashboard that asks for these."""

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

import cluster.observability.metrics
from cluster.observability.metrics import JOB, METRICS, Metrics, endpoints, is_free, plain

DASHBOARD = json.loads((Path(cluster.observability.metrics.__file__).parent / "grafana.json").read_text())
ROW = {
    "strategy": "numina",
    "guided": True,
    "steps": 25,
    "timings": {"identify": 12.0, "layout": 0.2, "decode": None},
    "gpu_seconds": 24.0,
}
Samples = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def ray_with_metrics() -> Iterator[None]:
    """A Ray without a dashboard, whose agent exports every second."""
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=1, _system_config={"metrics_report_interval_ms": 500}, **settings)
    yield
    ray.shutdown()


def scraped(job: str) -> Samples:
    """What the endpoint says of a job: name (without Ray's prefix) and value of the metric's tag → value."""
    samples: Samples = {}
    for place in endpoints():
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if labels.get(JOB) == job:
                    name = name.removeprefix("ray_")
                    metric = METRICS.get(name) or METRICS[re.sub("_(bucket|sum|count)$", "", name)]
                    samples[name, " ".join(labels[tag] for tag in (*metric.tags, "le") if tag in labels)] = value
    return samples


def awaited(job: str, **expected: float) -> Samples:
    """What is scraped once the expected values are there; `name__tag` for a name with a tag."""
    wanted = {tuple(name.split("__")): value for name, value in expected.items()}
    deadline = time.monotonic() + 20
    while True:
        found = scraped(job)
        if wanted.items() <= found.items():
            return found
        assert time.monotonic() < deadline, f"{wanted} isn't in {found}"
        time.sleep(0.1)


@pytest.mark.usefixtures("ray_with_metrics")
def test_prometheus_gets_what_a_job_tells() -> None:
    """Counters count, histograms have the buckets, gauges are the latest, and 0 for what is gone; no prompt in any."""
    metrics = Metrics("s3://me:hush@bucket/out")
    for _ in range(2):
        metrics.committed(ROW | {"prompt": "three hidden cats"})
    metrics.committed({"strategy": "baseline", "guided": False, "steps": 25, "timings": None, "gpu_seconds": None})
    metrics.failed("identify")
    metrics.retried("ActorDiedError")
    states = {"gang-0": "identify + layout", "gang-1": "loading", "gang-2": "identify"}
    metrics.now(states=states, busy={"gang-0": 0.5, "gang-1": 0.25}, queued={"layout": 3})
    metrics.now(states={"gang-0": "guide"}, busy={"gang-0": 0.75}, queued={"encoded": 1})

    found = awaited("s3://***@bucket/out", numina_clips_total__numina=2, numina_gangs__guide=1)
    assert {name: value for name, value in found.items() if "seconds_" not in name[0] or "gpu" in name[0]} == {
        ("numina_clips_total", "numina"): 2,
        ("numina_clips_total", "baseline"): 1,
        ("numina_guided_clips_total", "numina"): 2,
        ("numina_steps_total", "numina"): 50,
        ("numina_steps_total", "baseline"): 25,
        ("numina_gpu_seconds_total", "numina"): 48,
        ("numina_failures_total", "identify"): 1,
        ("numina_retries_total", "ActorDiedError"): 1,
        ("numina_gangs", "guide"): 1,
        ("numina_gangs", "identify"): 0,
        ("numina_gangs", "loading"): 0,
        ("numina_gang_busy_ratio", "gang-0"): 0.75,
        ("numina_gang_busy_ratio", "gang-1"): 0,
        ("numina_queued_batches", "layout"): 0,
        ("numina_queued_batches", "encoded"): 1,
    }
    buckets = [found["numina_stage_seconds_bucket", f"identify {le}"] for le in ("10.0", "20.0", "+Inf")]
    assert buckets == [0, 2, 2]
    assert found["numina_stage_seconds_bucket", "layout 0.25"] == 2
    assert found["numina_clip_seconds_count", "numina"] == 2
    assert not any("decode" in tag for _, tag in found)


def test_names_are_prometheus_own_way() -> None:
    """Prefix, base units, `_total` on counters and on nothing else; few tags, none of them a prompt."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"numina_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or name.endswith("_seconds")
        assert set(metric.tags) <= {"strategy", "stage", "gang", "state", "error", "verdict"}
        assert len(metric.tags) == 1


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_for_what_there_is() -> None:
    """Every metric and label of its queries exists, and every metric is shown."""
    asked = {name for text in expressions() for name in re.findall(r"ray_(numina_\w+)", text)}
    bare = {name.removesuffix("_bucket") for name in asked}
    assert bare == set(METRICS)
    assert all(METRICS[name.removesuffix("_bucket")].kind == "histogram" for name in asked if name.endswith("_bucket"))
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"ray_(numina_\w+)", target["expr"])
            tags = {tag for name in names for tag in METRICS[name.removesuffix("_bucket")].tags} | {JOB, "le"}
            groups = re.findall(r"by \(([\w, ]+)\)", target["expr"])
            used = {label for group in groups for label in group.split(", ")}
            used |= set(re.findall(r"(\w+)=~", target["expr"])) | set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert used <= tags, target["expr"]
            assert len(names) == target["expr"].count(f'{JOB}=~"$numina_job"'), "of the chosen jobs alone"


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Schema, unique ids, panels side by side within 24 columns, and the data source a variable, never an id."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource": "datasource",
        JOB: "query",
    }
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    used = [panel["datasource"] for panel in panels] + [t["datasource"] for p in panels for t in p["targets"]]
    assert {source["uid"] for source in used} == {"${datasource}"}
    for text in expressions():
        assert text.count("(") == text.count(")")


def test_a_port_that_is_taken_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so; metrics are then at a free port."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port)
    assert f"cluster.metrics_port={port} can't be used" in caplog.text
    assert is_free(port)


def test_tags_are_printable_ascii() -> None:
    """All that Ray takes; different names stay different."""
    assert plain("out/a b") == "out/a b"
    assert plain("ü\n漢\udcff\x7f") == r"\xfc\x0a\u6f22\udcff\x7f"
