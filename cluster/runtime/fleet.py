"""A job's workers on Ray: gangs and encoders, started side by side, watched, replaced when lost; tasks beside them.

Nothing here waits, so that a gang that loads or ends holds up no other: the driver waits for all references at once.
All that the driver knows of Ray is here; a benchmark puts workers without processes in this class's place.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError

from cluster.job.joining import joined, reachable
from cluster.observability.metrics import endpoints, is_free
from cluster.private.ray import METRICS_PORT
from cluster.runtime.faults import Handling, cause_of, handling_of, reason
from cluster.runtime.gang import Gang, GangState, end_gangs
from cluster.runtime.placement import Node, bundles, living_nodes, room
from cluster.runtime.specs import encoder_spec, gang_spec, judge_spec
from cluster.workers.code import ROOT, code_digest
from cluster.workers.encoder import EncoderSpec
from cluster.workers.judge import JudgeSpec
from cluster.workers.member import Arrival
from cluster.workers.rank import GangSpec
from numina.errors import GangError, MachineError
from pipelines.checkpoints.hub import LINE_SECONDS

if TYPE_CHECKING:
    from cluster.job.prepared import PreparedJob

CORES_SEEN_SECONDS = 10.0  # how long the cluster's number of cores is taken for known: asking costs a millisecond


class Fleet:
    """The gangs and encoders of one job, by name."""

    def __init__(self, prepared: PreparedJob):
        self.prepared = prepared
        self.gangs: dict[str, Gang] = {}
        self.encoders: dict[str, Gang] = {}
        self.judges: dict[str, Gang] = {}
        self.waiting: dict[ObjectRef, Gang] = {}  # steps of starts and ends
        self.stood = False  # whether any gang has
        self.false_starts: Counter[str] = Counter()  # gang → starts that failed since it last stood
        self._told: dict[str, float] = {}  # gang → when its download was told of
        self._said: list[str] = []  # of what gangs lack to be faster
        self.spec = gang_spec(prepared)  # of the next gang: with a preflight, until one has passed
        self.ending: list[Gang] = []  # gangs that end, in whose place no fresh one starts
        self.given_up = 0  # gangs that couldn't start, however often that was tried
        self._spare, self._spare_until = 0, 0.0  # cores that gangs and helpers leave, and until when that holds

    @property
    def all(self) -> list[Gang]:
        return [*self.gangs.values(), *self.helpers]

    @property
    def helpers(self) -> list[Gang]:
        """Encoders and judges."""
        return [*self.encoders.values(), *self.judges.values()]

    def start(self) -> None:
        """Begins to start helpers and the first gang, the others are added; loading a model takes minutes."""
        job = self.prepared.job
        if self.prepared.encodes_apart:
            for number in range(job.cluster.encoders):
                self._start(Gang(f"encoder-{number}", encoder_spec(self.prepared)))
        if job.verifies:
            for number in range(job.verify.judges):
                self._start(Gang(f"judge-{number}", judge_spec(self.prepared)))
        self.add()

    def add(self) -> None:
        """Begins to start one more gang. While a preflight is awaited, that one makes it."""
        taken = {gang.name for gang in [*self.gangs.values(), *self.ending]}
        name = next(name for number in count() if (name := f"gang-{number}") not in taken)
        self._start(Gang(name, self.spec))

    def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        return living_nodes()

    def watch(self) -> Iterator[tuple[Gang, GangError]]:
        """Looks after what no reference tells, and yields gangs that stand and are silent, with the reason to replace
        them. Raises GangError when none is left."""
        for gang in [*self.all, *self.ending]:
            if gang.silent:
                error = GangError(f"{gang.name} gave no sign of life for {gang.spec.step_timeout:.0f} s")
                if gang.state is GangState.STANDING:
                    yield gang, error
                else:
                    self._false_start(gang, error)
            elif gang.download and time.monotonic() - self._told.get(gang.name, 0.0) >= LINE_SECONDS:
                self._told[gang.name] = time.monotonic()
                _log(gang).info("%s downloads %s", gang.name, gang.download)
            elif gang.state is GangState.ENDING and gang.overdue:
                _log(gang).warning("%s: some of its processes still run after %.0f s", gang.name, gang.age)
                self._begin_again(gang)
            elif gang.state is GangState.PLACING and gang.overdue:
                # A job goes on with the gangs it has: a lost node may come back.
                # So it does while others start: whether they can shows without this one.
                if all(other.state is GangState.PLACING for other in self._peers(gang).values()):
                    self._give_up(gang, GangError(gang.lateness()))
            elif gang.overdue:
                self._false_start(gang, GangError(gang.lateness()))

    def handle(self, reference: ObjectRef) -> None:
        """A step of a start or an end is done, or failed. Raises GangError when no gang is left."""
        gang = self.waiting.pop(reference)
        if gang.state is GangState.ENDING:  # done, or its node is gone, and the processes with it
            if gang.gone(reference):
                self._begin_again(gang)
            return
        try:
            answer = ray.get(reference)
        except RayError as error:
            self._false_start(gang, error)
            return
        if isinstance(answer, Arrival) and answer.code != code_digest():
            raise GangError(
                f"{gang.name} runs other code than this driver: {answer.code_place} on {answer.host} is {answer.code},"
                f" {ROOT} here is {code_digest()}; install the same version of numina on all nodes"
            )
        gang.heard(reference, answer)
        if gang.spec.tests and (gang.state is GangState.STANDING or (isinstance(answer, Arrival) and not answer.rank)):
            self._pass(gang, answer)
        if gang.state is GangState.STANDING:
            self.stood = True
            del self.false_starts[gang.name]
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in gang.seconds.items())
            _log(gang).info("%s is ready after %.1f s: %s", gang.name, gang.age, took)
            if gang.running.what:
                _log(gang).info("%s runs on %s", gang.name, gang.running.what)
            for missing in [one for one in gang.running.faster if one not in self._said]:  # once a job
                self._said.append(missing)
                _log(gang).warning("clips could be faster: %s", missing)

    def retire(self, gang: Gang) -> None:
        """Ends a gang, and no fresh one takes its place."""
        del self._peers(gang)[gang.name]
        self.ending.append(gang)
        self.replace(gang)

    def release(self, gang: Gang) -> None:
        """Ends what isn't lost but has to go: a gang for good, for another one may find no place; a helper starts
        again elsewhere."""
        (self.retire if gang in self.gangs.values() else self.replace)(gang)

    def replace(self, gang: Gang) -> None:
        """Ends a gang; when its processes are gone, a fresh one takes its place."""
        self._forget(gang)
        references = gang.kill()
        self.waiting |= dict.fromkeys(references, gang)
        if not references:
            self._begin_again(gang)

    def wait(self, references: Sequence[ObjectRef], timeout: float) -> list[ObjectRef]:
        """Those of the references that are done, as soon as one is; none after `timeout` seconds."""
        if not references:
            time.sleep(timeout)
            return []
        ready: list[ObjectRef] = ray.wait(references, num_returns=1, timeout=timeout)[0]
        return ready

    def answer(self, reference: ObjectRef) -> Any:
        """What a done reference holds. Raises what was raised where it was made."""
        return ray.get(reference)

    def put(self, value: Any) -> ObjectRef:
        """A value that many calls are given, sent once."""
        return ray.put(value)

    @property
    def cores_beside(self) -> int | None:
        """How many cores are left for tasks beside the gangs; None if gangs take them all, and tasks share theirs."""
        if time.monotonic() > self._spare_until:
            nodes = [node for node in self.nodes() if node.gone_at is None]
            totals = [node.total for node in nodes]
            places = room(bundles(self.spec, totals), [replace(node, free=node.total) for node in nodes])
            cores = sum(total.get("CPU", 0.0) for total in totals)
            self._spare = int(cores - reserved_cpus(self.prepared, min(len(self.gangs), places)))
            self._spare_until = time.monotonic() + CORES_SEEN_SECONDS
        return self._spare if self._spare >= 1 else None

    def beside(self, stage: Any, cpus: float, *arguments: Any) -> ObjectRef:
        """A task on any CPU of the cluster. It reserves no core where gangs took them all, or it would never run."""
        return stage.options(num_cpus=cpus if self.cores_beside else 0).remote(*arguments)

    def end(self) -> None:
        """Ends all, and waits until their processes are gone."""
        end_gangs([*self.all, *self.ending])

    def _pass(self, gang: Gang, answer: Arrival | dict[str, float]) -> None:
        """Once a preflight has passed, now or before, the other gangs may start; none of them needs one."""
        assert isinstance(gang.spec, GangSpec), "no other process has a preflight"
        if isinstance(answer, Arrival):
            if not answer.passed:
                return
            _log(gang).info("a preflight of this code, model and machine has passed before")
        else:
            _log(gang).info("the preflight has passed")
        gang.spec = self.spec = replace(gang.spec, preflight=None)

    def _start(self, gang: Gang) -> None:
        if waits := gang.roomless():
            _log(gang).warning("%s", waits)
        self._peers(gang)[gang.name] = gang
        self.waiting |= dict.fromkeys(gang.start(), gang)

    def _begin_again(self, gang: Gang) -> None:
        self._forget(gang)
        gang.free()
        if gang in self.ending:
            self.ending.remove(gang)
        elif self._peers(gang).get(gang.name) is gang:
            self._start(gang.fresh())

    def _false_start(self, gang: Gang, error: BaseException) -> None:
        """Another try with a fresh gang, unless the input is at fault; after the last one the job goes on without.

        What a machine lacks before anything has worked here, another try wouldn't bring.
        """
        self.false_starts[gang.name] += 1
        if handling_of(error) is Handling.REFUSED:
            raise GangError(f"{gang.name} could not start: {reason(error)}") from error
        lacking = isinstance(cause_of(error), MachineError) and not self.stood
        if lacking or self.false_starts[gang.name] >= self.prepared.job.cluster.attempts:
            self._give_up(gang, error)
        else:
            _log(gang).warning("%s could not start and is started again: %s", gang.name, reason(error))
            self.replace(gang)

    def _give_up(self, gang: Gang, error: BaseException) -> None:
        peers = self._peers(gang)
        if len(peers) == 1:
            raise GangError(f"{gang.name} could not start: {reason(error)}") from error
        _log(gang).error("%s could not start, the job continues without it: %s", gang.name, reason(error))
        del self.false_starts[gang.name]
        self.given_up += peers is self.gangs
        self.retire(gang)

    def _peers(self, gang: Gang) -> dict[str, Gang]:
        others = {EncoderSpec: self.encoders, JudgeSpec: self.judges}
        return others.get(type(gang.spec), self.gangs)

    def _forget(self, gang: Gang) -> None:
        self.waiting = {reference: owner for reference, owner in self.waiting.items() if owner is not gang}


@contextmanager
def ray_cluster(prepared: PreparedJob, address: str | None = None) -> Iterator[None]:
    """Joins the job's Ray cluster, at an `address` that was tried; a local one is started for the job and ended with
    it."""
    address = address or reachable(prepared.job.cluster.address)
    options: dict[str, Any] = {}
    if address == "local":
        # One core more than the ranks take, at least: what runs beside them is short, and ranks sleep where they wait.
        cores = max(reserved_cpus(prepared, _local_gangs(prepared)) + 1, len(os.sched_getaffinity(0)))
        options = {"num_cpus": cores}
        if (port := prepared.job.cluster.metrics_port) and is_free(port):
            options[METRICS_PORT] = port
    with joined(address, **options):
        log = logging.getLogger(__name__)
        log.info("metrics at %s", ", ".join(endpoints()) or "no port: see Ray's logs of its metrics agent")
        yield


def reserved_cpus(prepared: PreparedJob, gangs: int) -> int:
    """CPU cores that so many gangs of a job, its encoders and its judges take."""
    cluster, parallel = prepared.job.cluster, prepared.job.parallel
    encoders = cluster.encoders * cluster.encoder_cpus if prepared.encodes_apart else 0
    judges = prepared.job.verify.judges * prepared.job.verify.cpus if prepared.job.verifies else 0
    return gangs * parallel.ranks * cluster.cpus_per_rank + encoders + judges


def _local_gangs(prepared: PreparedJob) -> int:
    """How many gangs a Ray on this machine will hold."""
    parallel = prepared.job.parallel
    gpus = torch.cuda.device_count() if parallel.gangs == "auto" and prepared.device == "cuda" else 0
    return max(parallel.gangs_at_least, min(gpus // parallel.ranks, parallel.gangs_max or gpus))


def _log(gang: Gang) -> logging.LoggerAdapter[logging.Logger]:
    """Its lines say which gang they are about."""
    return logging.LoggerAdapter(logging.getLogger(__name__), {"gang": gang.name})
