"""What a running job tells Prometheus: counters, gauges and histograms on every node's Ray metrics agent.

Ray puts `ray_` before every name, so that Prometheus sees `ray_numina_clips_total`, and adds labels of its own.
`grafana.json` beside this file is a dashboard of them.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec

import ray
from ray.util import metrics

from cluster.observability.logs import redact
from cluster.observability.progress import main_state

P = ParamSpec("P")

log = logging.getLogger(__name__)

SECONDS = (
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    45.0,
    60.0,
    90.0,
    120.0,
    180.0,
    300.0,
    600.0,
    1200.0,
    3600.0,
)
"""Upper bounds of the histograms' buckets: from a layout on a CPU to a long clip on few GPUs."""


@dataclass(frozen=True)
class Metric:
    """A metric's kind, what it means, and its tags beside `numina_job`, each of few values."""

    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    tags: tuple[str, ...] = ()


METRICS = {
    "numina_clips_total": Metric("counter", "Clips committed by this job.", ("strategy",)),
    "numina_guided_clips_total": Metric("counter", "Of those, clips whose counts were corrected.", ("strategy",)),
    "numina_steps_total": Metric("counter", "Steps of the schedules of committed clips.", ("strategy",)),
    "numina_gpu_seconds_total": Metric("counter", "GPU time of committed clips.", ("strategy",)),
    "numina_failures_total": Metric("counter", "Clips given up, by the stage they failed in.", ("stage",)),
    "numina_verdicts_total": Metric("counter", "Verdicts on verified samples' clips.", ("verdict",)),
    "numina_retries_total": Metric("counter", "Failed tries that were repeated, by class of error.", ("error",)),
    "numina_stage_seconds": Metric("histogram", "Time that a clip took in each stage.", ("stage",)),
    "numina_clip_seconds": Metric("histogram", "Time that a clip took in all stages.", ("strategy",)),
    "numina_gangs": Metric("gauge", "Gangs and encoders by what they do.", ("state",)),
    "numina_gang_busy_ratio": Metric("gauge", "Share of its time that a gang has computed, 0 to 1.", ("gang",)),
    "numina_queued_batches": Metric("gauge", "Batches by the stage that they are in or wait for.", ("stage",)),
}
"""All metrics by name. Prompts are in none: there are too many, and they are the user's."""

JOB = "numina_job"  # Prometheus has a label `job` of its own


def _never_ends_a_job(told: Callable[Concatenate["Metrics", P], None]) -> Callable[Concatenate["Metrics", P], None]:
    """Metrics that can't be told are told no more, and the log says why, once."""

    @wraps(told)
    def tell(self: "Metrics", /, *given: P.args, **named: P.kwargs) -> None:
        if self._failed:
            return
        try:
            told(self, *given, **named)
        except Exception as error:
            self._failed = True
            log.warning("metrics end here, the job continues: %s: %s", type(error).__name__, error)

    return tell


class Metrics:
    """What a running job tells Prometheus, through ray.util.metrics; made after ray.init.

    Nothing here waits. Ray exports every 10 seconds (`RAY_metrics_report_interval_ms`); what a job says in its last
    ones is lost.
    """

    def __init__(self, job: str) -> None:
        self._metrics: dict[str, Any] = {}
        self._shown: dict[str, set[str]] = {}  # gauge → values of its tag so far
        self._failed = False
        self._make(job)

    @_never_ends_a_job
    def _make(self, job: str) -> None:
        self._metrics = {name: _made(name, metric, plain(redact(job))) for name, metric in METRICS.items()}

    @_never_ends_a_job
    def committed(self, row: Mapping[str, Any]) -> None:
        """A clip's row was made visible by this job: its columns strategy, guided, steps, timings, gpu_seconds."""
        strategy = row["strategy"]
        seconds = {stage: took for stage, took in (row.get("timings") or {}).items() if took is not None}
        self._count("numina_clips_total", strategy)
        self._count("numina_guided_clips_total", strategy, int(bool(row.get("guided"))))
        self._count("numina_steps_total", strategy, row.get("steps") or 0)
        self._count("numina_gpu_seconds_total", strategy, row.get("gpu_seconds") or 0)
        for stage, took in seconds.items():
            self._observe("numina_stage_seconds", stage, took)
        self._observe("numina_clip_seconds", strategy, sum(seconds.values()))

    @_never_ends_a_job
    def failed(self, stage: str) -> None:
        """A clip was given up."""
        self._count("numina_failures_total", stage)

    @_never_ends_a_job
    def judged(self, accepted: bool) -> None:
        """A verified sample's clip was judged."""
        self._count("numina_verdicts_total", "accepted" if accepted else "rejected")

    @_never_ends_a_job
    def retried(self, error: str) -> None:
        """A try failed and is repeated; `error` is the class's name."""
        self._count("numina_retries_total", error)

    @_never_ends_a_job
    def now(self, *, states: Mapping[str, str], busy: Mapping[str, float], queued: Mapping[str, int]) -> None:
        """How it is: what each gang does (as in `JobProgress.gangs`), the share of its time it was busy, batches by
        stage. What was told before and isn't there any more is 0 from here on."""
        kinds = [main_state(state) for state in states.values()]
        self._set("numina_gangs", {kind: kinds.count(kind) for kind in kinds})
        self._set("numina_gang_busy_ratio", busy)
        self._set("numina_queued_batches", queued)

    def _count(self, name: str, tag: str, amount: float = 1) -> None:
        if amount > 0:  # Ray takes no 0
            self._metrics[name].inc(amount, _tags(name, tag))

    def _observe(self, name: str, tag: str, value: float) -> None:
        self._metrics[name].observe(value, _tags(name, tag))

    def _set(self, name: str, values: Mapping[str, float]) -> None:
        shown = self._shown.setdefault(name, set())
        shown.update(values)
        for tag in shown:
            self._metrics[name].set(values.get(tag, 0), _tags(name, tag))


def endpoints() -> list[str]:
    """Where Prometheus finds the metrics: `host:port` of every living node of the joined Ray cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]  # -1: it has none
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]


def is_free(port: int) -> bool:
    """Whether metrics can be served at a port of this machine; if not, a line of the log says so."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            log.warning("cluster.metrics_port=%d can't be used (%s); metrics are served at a free port", port, error)
            return False
    return True


def _made(name: str, metric: Metric, job: str) -> Any:
    tags = (JOB, *metric.tags)
    if metric.kind == "histogram":
        made: Any = metrics.Histogram(name, metric.meaning, boundaries=list(SECONDS), tag_keys=tags)
    else:
        made = {"counter": metrics.Counter, "gauge": metrics.Gauge}[metric.kind](name, metric.meaning, tag_keys=tags)
    return made.set_default_tags({JOB: job})


def _tags(name: str, value: str) -> dict[str, str]:
    return {METRICS[name].tags[0]: plain(value)}


def plain(value: str) -> str:
    """A tag's value in printable ASCII, which is all that Ray takes: ü is \\xfc."""
    text = value.encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
