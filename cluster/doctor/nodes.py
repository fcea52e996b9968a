"""The checks on every node of a Ray cluster, and what differs between nodes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor.check import Result, State, examine, fails, ok, warning
from cluster.doctor.checks import CHECKS
from cluster.doctor.needs import Needs
from cluster.job.joining import joined, reachable
from cluster.storage.destination import nearest
from cluster.storage.protocol import TEMPORARY
from cluster.workers.code import ROOT, code_digest

NODE_SECONDS = 60.0  # for a node to answer: a worker starts there, and imports what a check needs


def examine_cluster(needs: Needs) -> tuple[list[Result], dict[str, list[Result]]]:
    """What a driver needs of this machine, and of the cluster as a whole; then each living node's lines.

    Raises ConfigError or GangError where the cluster can't be joined.
    """
    needs = replace(needs, address="auto" if needs.is_local else needs.address, code=code_digest())
    here = examine({name: check for name, check in CHECKS.items() if not check.everywhere}, needs)
    with joined(reachable(needs.address)):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [*here, _room(needs, nodes)], _examine_nodes(needs, nodes)


def _room(needs: Needs, nodes: Sequence[Mapping[str, Any]]) -> Result:
    """What Ray counts on the nodes, and whether the job's gangs have room."""
    began = time.monotonic()
    gpus, cpus = (int(sum(node["Resources"].get(name, 0.0) for node in nodes)) for name in ("GPU", "CPU"))
    said, wanted, there = f"{len(nodes)} nodes with {gpus} GPUs and {cpus} CPUs", needs.ranks * needs.gangs, gpus
    if needs.job and not needs.needs_gpu:
        there = cpus
    finding = ok(said)
    if needs.job and there < wanted:
        said += f"; {needs.gangs} gangs of {needs.ranks} ranks want {wanted} {'GPUs' if needs.needs_gpu else 'CPUs'}"
        remedy = "use fewer gangs (parallel.gangs) or ranks, or start Ray on more nodes, where their GPUs can be seen"
        finding = fails(said, remedy) if there < needs.ranks else warning(said, remedy)
    return Result(name="cluster", seconds=time.monotonic() - began, **asdict(finding))


def _examine_nodes(needs: Needs, nodes: Sequence[Mapping[str, Any]]) -> dict[str, list[Result]]:
    """One task for each node, which takes no core: a job may have them all."""
    with _shared_mark(needs) as told:
        asked = {
            _ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                asdict(replace(told, node_gpus=node["Resources"].get("GPU", 0.0)))
            ): node["NodeManagerAddress"]
            for node in nodes
        }
        done, _ = ray.wait([*asked], num_returns=len(asked), timeout=NODE_SECONDS)
        names = _unique(list(asked.values()))
        return {name: _lines(reference, reference in done) for name, reference in zip(names, asked, strict=True)}


def _lines(reference: Any, done: bool) -> list[Result]:
    try:
        if done:
            return [Result(**{**line, "state": State(line["state"])}) for line in ray.get(reference)]
        said = f"the node gave no answer within {NODE_SECONDS:.0f} s"
    except RayError as error:
        said = f"the node's checks failed ({' '.join(str(error).split())[-300:]})"
    remedy = "see `ray status`, and whether numina and its packages are installed there alike"
    return [Result(name="node", state=State.FAILS, found=said, remedy=remedy, seconds=NODE_SECONDS)]


def _unique(names: Sequence[str]) -> list[str]:
    """Several nodes of one address, as in a test, are numbered."""
    often, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} #{seen[name]}" if often[name] > 1 else name)
    return found


@contextmanager
def _shared_mark(needs: Needs) -> Iterator[Needs]:
    """A file beside the output while nodes are asked: one that doesn't see it has another disk under this name."""
    if not needs.output or "://" in needs.output:
        yield needs
        return
    mark = nearest(Path(needs.output)) / f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # the output's own line says it
        mark.touch()
    try:
        yield replace(needs, output_mark=str(mark)) if mark.exists() else needs
    finally:
        mark.unlink(missing_ok=True)


@ray.remote(num_cpus=0, max_retries=0)
def _ask(needs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """On a node: its checks, in a process with the environment that Ray was started in there. A worker's own has no
    GPU where it asked for none."""
    try:
        words = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        started = dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)
    except OSError:
        started = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "cluster.doctor"],
        input=json.dumps(needs),
        env={**started, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))},
        capture_output=True,
        text=True,
        timeout=NODE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    lines: list[dict[str, Any]] = json.loads(done.stdout)
    return lines


def differing(nodes: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, Result]]:
    """Check → node → line, of the checks whose state isn't the same, and good, everywhere."""
    by_check: dict[str, dict[str, Result]] = {}
    for node, lines in nodes.items():
        for line in lines:
            by_check.setdefault(line.name, {})[node] = line
    return {
        name: lines
        for name, lines in by_check.items()
        if {line.state for line in lines.values()} != {State.OK} or len(lines) < len(nodes)
    }
