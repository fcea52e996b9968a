"""A job's gangs and encoders: started side by side, watched, replaced when they are lost.

Nothing here waits, so that a gang that loads or ends holds up no other: the driver waits for all references at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.encoder import EncoderSpec
from cluster.gang import ENDING, PLACING, STANDING, Gang, GangSpec, end_gangs
from numina.errors import GangError, InputError

if TYPE_CHECKING:
    from cluster.plan import JobPlan

log = logging.getLogger(__name__)


class Fleet:
    """The gangs and encoders of one job, by name."""

    def __init__(self, plan: JobPlan):
        self.plan = plan
        self.gangs: dict[str, Gang] = {}
        self.encoders: dict[str, Gang] = {}
        self.waiting: dict[ObjectRef, Gang] = {}  # steps of starts and ends
        self.false_starts: Counter[str] = Counter()  # gang → starts that failed since it last stood

    @property
    def all(self) -> list[Gang]:
        return [*self.gangs.values(), *self.encoders.values()]

    def start(self) -> None:
        """Begins to start all; loading a model takes minutes."""
        job = self.plan.job
        cluster = job.cluster
        shared: dict[str, Any] = {
            "model_path": job.model.path,
            "dtype": self.plan.dtype,
            "generation": job.generation,
            "start_timeout": cluster.start_timeout,
            "step_timeout": cluster.step_timeout,
            "end_timeout": cluster.end_timeout,
        }
        spec = GangSpec(
            device=self.plan.device,
            methods=tuple(job.methods.values()),
            parallel=job.parallel,
            memory=job.memory,
            cpus_per_rank=cluster.cpus_per_rank,
            **shared,
        )
        for number in range(job.parallel.gangs):
            self._start(Gang(f"gang-{number}", spec))
        if self.plan.encodes_apart:
            encoder = EncoderSpec(cpus=cluster.encoder_cpus, gpus=cluster.encoder_gpus, **shared)
            for number in range(cluster.encoders):
                self._start(Gang(f"encoder-{number}", encoder))

    def watch(self) -> Iterator[tuple[Gang, GangError]]:
        """Looks after what no reference tells, and yields gangs that stand and are silent, with the reason to replace
        them. Raises GangError when none is left."""
        for gang in self.all:
            if gang.silent:
                yield gang, GangError(f"{gang.name} gave no sign of life for {gang.spec.step_timeout:.0f} s")
            elif gang.stage == ENDING and gang.overdue:
                log.warning("%s: some of its processes live on after %.0f s", gang.name, gang.age)
                self._begin_again(gang)
            elif gang.stage == PLACING and gang.overdue:
                # A job goes on with the gangs it has: a lost node may come back.
                if not any(other.stage == STANDING for other in self._peers(gang).values()):
                    self._give_up(gang, GangError(gang.lateness()))
            elif gang.overdue:
                self._false_start(gang, GangError(gang.lateness()))

    def handle(self, reference: ObjectRef) -> None:
        """A step of a start or an end is done, or failed. Raises GangError when no gang is left."""
        gang = self.waiting.pop(reference)
        if gang.stage == ENDING:  # done, or its node is gone, and the processes with it
            if gang.gone(reference):
                self._begin_again(gang)
            return
        try:
            gang.heard(reference, ray.get(reference))
        except RayError as error:
            self._false_start(gang, error)
            return
        if gang.stage == STANDING:
            del self.false_starts[gang.name]
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in gang.seconds.items())
            log.info("%s stands after %.1f s: %s", gang.name, gang.age, took)

    def replace(self, gang: Gang) -> None:
        """Ends a gang; when its processes are gone, a fresh one takes its place."""
        self._forget(gang)
        references = gang.kill()
        self.waiting |= dict.fromkeys(references, gang)
        if not references:
            self._begin_again(gang)

    def end(self) -> None:
        """Ends all, and waits until their processes are gone."""
        end_gangs(self.all)

    def _start(self, gang: Gang) -> None:
        self._peers(gang)[gang.name] = gang
        self.waiting |= dict.fromkeys(gang.start(), gang)

    def _begin_again(self, gang: Gang) -> None:
        self._forget(gang)
        gang.free()
        if self._peers(gang).get(gang.name) is gang:
            self._start(gang.fresh())

    def _false_start(self, gang: Gang, error: BaseException) -> None:
        """Another try with a fresh gang, unless the input is at fault; after the last one the job goes on without."""
        self.false_starts[gang.name] += 1
        if is_input_error(error):
            raise GangError(f"{gang.name} could not start: {reason(error)}") from error
        if self.false_starts[gang.name] >= self.plan.job.cluster.attempts:
            self._give_up(gang, error)
        else:
            log.warning("%s could not start, and is started again: %s", gang.name, reason(error))
            self.replace(gang)

    def _give_up(self, gang: Gang, error: BaseException) -> None:
        peers = self._peers(gang)
        if len(peers) == 1:
            raise GangError(f"{gang.name} could not start: {reason(error)}") from error
        log.error("%s could not start, the job goes on without it: %s", gang.name, reason(error))
        del peers[gang.name]
        self.replace(gang)

    def _peers(self, gang: Gang) -> dict[str, Gang]:
        return self.encoders if isinstance(gang.spec, EncoderSpec) else self.gangs

    def _forget(self, gang: Gang) -> None:
        self.waiting = {reference: owner for reference, owner in self.waiting.items() if owner is not gang}


def is_input_error(error: BaseException) -> bool:
    """Whether a call was refused for what it was given."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, InputError)


def reason(error: BaseException) -> str:
    """The cause that a Ray error carries, without the remote traceback."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}"[:2000]
