"""A gang: processes that start together, work together and end together, as Ray actors in one placement group.

    placing ─► downloading ─► loading ─► (compiling) ─► (preflight) ─► standing ─► ending

A lost process takes its gang with it.

All ranks get the same calls in the same order; rank 0 answers. Nothing here waits: starting and ending give references
to wait for, and the driver has other gangs to serve.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.dataset.leases import process_started
from cluster.runtime.placement import amounts, bundles, node_sizes
from cluster.workers.member import Arrival, Running, Spec

PULSE_SECONDS = 1.0  # between two questions for a sign of life


class GangState(StrEnum):
    """What a gang's processes are at, all together."""

    PLACING = "placing"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    COMPILING = "compiling"
    TESTING = "preflight"
    STANDING = "standing"
    ENDING = "ending"


class Gang:
    """The driver's handle on one gang."""

    def __init__(self, name: str, spec: Spec):
        self.name = name
        self.spec = spec
        self.state = GangState.PLACING
        self.arrivals: list[Arrival] = []
        self.seconds: dict[str, float] = {}  # what the start took, by name: the slowest rank's
        self.bundles = bundles(spec, node_sizes())
        self.download = ""  # what a rank of it downloads, in words
        self.running = Running()
        self._began = time.monotonic()
        self.leaves_at: float | None = None  # where its node is to leave: when, in seconds since the epoch
        self._placed = False  # whether its bundles are reserved
        self._waited = 0.0  # seconds for a place
        self._tests_since = 0.0  # when its preflight began
        self._awaited: dict[ObjectRef, GangState] = {}  # what its start or end waits for, and the state until then
        self._pulses: list[tuple[ObjectRef, float]] = []  # per rank: the question, and when it was asked
        self._place: PlacementGroup = placement_group(self.bundles, strategy="PACK")
        actor = ray.remote(concurrency_groups={"pulse": 1})(spec.actor)
        size = spec.ranks // len(self.bundles)
        self.ranks: list[ActorHandle] = [
            actor.options(
                num_cpus=spec.need["CPU"],
                num_gpus=spec.need.get("GPU", 0),
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._place, placement_group_bundle_index=rank // size
                ),
            ).remote(spec, rank, name)
            for rank in range(spec.ranks)
        ]

    def start(self) -> list[ObjectRef]:
        """Starts all ranks. Once every reference was handed to `heard`, the gang stands."""
        arrivals = [rank.arrive.remote() for rank in self.ranks]
        fetches = [rank.fetch.remote() for rank in self.ranks if self.spec.fetches]
        loads = [rank.load.remote(arrivals[0]) for rank in self.ranks]
        warm = [*(rank.warm_up.remote() for rank in self.ranks), self.ranks[0].runs.remote()]
        last = [rank.preflight.remote(arrivals[0]) for rank in self.ranks] if self.spec.tests else []
        self._awaited = (
            dict.fromkeys(arrivals, GangState.PLACING)
            | dict.fromkeys(fetches, GangState.DOWNLOADING)
            | dict.fromkeys(loads, GangState.LOADING)
            | dict.fromkeys(warm, GangState.COMPILING if self.spec.compiles else GangState.LOADING)
            | dict.fromkeys(last, GangState.TESTING)
        )
        return list(self._awaited)

    def heard(self, reference: ObjectRef, answer: Any) -> None:
        """A step of the start is done."""
        del self._awaited[reference]
        if isinstance(answer, Arrival):
            self.arrivals.append(answer)
        elif isinstance(answer, Running):
            self.running = answer
        else:
            self.seconds |= {name: max(took, self.seconds.get(name, 0.0)) for name, took in answer.items()}
        before, self.state = self.state, next(iter(self._awaited.values()), GangState.STANDING)
        if self.state is not before:
            if before is GangState.PLACING:
                self._waited = self.age
            if self.state is GangState.TESTING:
                self._tests_since = time.monotonic()
            watched = self.ranks if self.state in (GangState.DOWNLOADING, GangState.STANDING) else []
            self._pulses = [(rank.pulse.remote(), time.monotonic()) for rank in watched]
            self.download = ""

    @property
    def doing(self) -> str:
        """Its state, with how far a download is."""
        return f"{self.state} {self.download}" if self.state is GangState.DOWNLOADING and self.download else self.state

    @property
    def placed(self) -> bool:
        """Whether it has its place, and no longer waits for one."""
        self._placed = self._placed or placement_group_table(self._place)["state"] == "CREATED"
        return self._placed

    @property
    def age(self) -> float:
        """Seconds since its start, or its end, began."""
        return time.monotonic() - self._began

    @property
    def overdue(self) -> bool:
        """Whether its start, or its end, takes longer than it may."""
        if self.state is GangState.TESTING and time.monotonic() - self._tests_since > self.spec.step_timeout:
            return True
        endless = dict.fromkeys((GangState.STANDING, GangState.DOWNLOADING), float("inf"))
        limits = endless | {GangState.ENDING: self.spec.end_timeout}
        waived = 0.0 if self.state is GangState.ENDING else self._waited + self.seconds.get("download", 0.0)
        return self.age - waived > limits.get(self.state, self.spec.start_timeout)

    @property
    def silent(self) -> bool:
        """Whether a rank that works or downloads owes a sign of life for longer than a step may take."""
        now = time.monotonic()
        for rank, (question, asked) in enumerate(self._pulses):
            if now - asked < PULSE_SECONDS:
                continue
            if ray.wait([question], timeout=0)[0]:
                with contextlib.suppress(RayError):  # what a lost process was asked to do raises it, too
                    self.download = ray.get(question) or self.download
                self._pulses[rank] = (self.ranks[rank].pulse.remote(), now)
            elif now - asked > self.spec.step_timeout:
                return True
        return False

    def call(self, method: str, *arguments: Any) -> None:
        """The same call on every rank, whose end nobody waits for."""
        for rank in self.ranks:
            getattr(rank, method).remote(*arguments)

    def make(self, method: str, *arguments: Any) -> tuple[ObjectRef, list[ObjectRef]]:
        """The same call on every rank: what rank 0 makes, and every rank's receipt, rank 0's first.

        No argument may be a reference that isn't there yet: it would hold up signs of life behind it.
        """
        answers = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return answers[0][0], [receipt for _, receipt in answers]

    def kill(self) -> list[ObjectRef]:
        """Ends all ranks, whatever they do; once the references are done their processes, and GPU memory, are gone."""
        self.state, self._began = GangState.ENDING, time.monotonic()
        for rank in self.ranks:
            ray.kill(rank)
        self._awaited, self._pulses = {}, []
        for node in {arrival.node for arrival in self.arrivals}:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            own = [(arrival.pid, arrival.started) for arrival in self.arrivals if arrival.node == node]
            reference = end_processes.options(scheduling_strategy=there).remote(own, self.spec.end_timeout)
            self._awaited[reference] = GangState.ENDING
        return list(self._awaited)

    def gone(self, reference: ObjectRef) -> bool:
        """Whether this was the last of `kill`'s references."""
        del self._awaited[reference]
        return not self._awaited

    def free(self) -> None:
        """Gives its place back, after its end."""
        remove_placement_group(self._place)

    def fresh(self) -> Gang:
        """Another one like this."""
        return Gang(self.name, self.spec)

    def lateness(self) -> str:
        """What an overdue gang waits for, in numbers."""
        if self.state is GangState.TESTING:
            return (
                f"{self.name}'s preflight, one small clip, wasn't done after"
                f" {time.monotonic() - self._tests_since:.0f} s; `numina doctor` shows whether GPUs compute and reach"
                " each other, cluster.step_timeout gives it longer"
            )
        if self.state is not GangState.PLACING:
            return f"{self.name} was still {self.state} after {self.age:.0f} s; cluster.start_timeout gives it longer"
        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
        largest = max(node_sizes(), key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        return (
            f"{self.name} found no place within {self.age:.0f} s: it needs {len(self.bundles)} ×"
            f" {amounts(self.bundles[0])}, each on one node; the cluster's largest node has {amounts(largest)}, and"
            f" {amounts(free)} are free in all; use fewer ranks (parallel.ulysses, ring, cfg) or gangs"
            " (parallel.gangs); for a node that is still to come, cluster.start_timeout gives it longer"
        )

    def roomless(self) -> str | None:
        """For what it waits where no node of the cluster, however idle, has room for it."""
        sizes = node_sizes()
        if any(all(node.get(name, 0) >= amount for name, amount in self.bundles[0].items()) for node in sizes):
            return None
        largest = max(sizes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        return (
            f"{self.name} waits for a node with {amounts(self.bundles[0])}; the cluster's largest has"
            f" {amounts({name: amount for name, amount in largest.items() if amount})}. Was Ray started where its GPUs"
            " can be seen? `numina doctor --on-cluster` shows every node"
        )


def end_gangs(gangs: Sequence[Gang]) -> None:
    """Ends gangs side by side and waits until their processes are gone, no longer than `end_timeout`."""
    references = [reference for gang in gangs for reference in gang.kill()]
    if references:
        ray.wait(references, num_returns=len(references), timeout=max(gang.spec.end_timeout for gang in gangs))
    for gang in gangs:
        gang.free()


@ray.remote(num_cpus=0, max_retries=0)
def end_processes(processes: Sequence[tuple[int, int | None]], timeout: float) -> None:
    """Kills processes of this node (pid, and its `process_started`), also stopped ones, and returns when they are gone
    or time is up. A process that was given one of the numbers since is left alone."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and (living := [pid for pid, started in processes if _lives(pid, started)]):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _lives(pid: int, started: int | None) -> bool:
    return started is not None and process_started(pid) == started
