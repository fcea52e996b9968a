"""How many gangs there are: as many as the job asks for or, with `parallel.gangs: auto`, as the cluster has room for.

    a node joins ─► a gang starts there          no clip is left for a gang ─► it ends
    a node is to leave ─► its gangs begin nothing new ─► what can end in time ends, the rest is handed back ─► they end

Ray says which nodes there are, and which are to leave: by `ray drain-node`, or by an autoscaler that was given notice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING

from cluster.runtime.flight import Flight, now
from cluster.runtime.gang import Gang, GangState
from cluster.runtime.placement import Node, amounts, bundles, hosts, room

if TYPE_CHECKING:
    from cluster.runtime.fleet import Fleet
    from cluster.runtime.recovery import Recovery
    from pipelines.parallel.config import ParallelConfig

LOOK_SECONDS = 2.0  # between two looks at the nodes
HAND_OVER_SECONDS = 5.0  # before a node leaves: what isn't done then is handed back
LINGER_SECONDS = 30.0  # that a gang may wait for a place though there seems to be none: what is free is known roughly

log = logging.getLogger(__name__)


def wanted(
    asked: int | None, *, placed: int, room: int, work: int | None = None, most: int | None = None, given_up: int = 0
) -> int:
    """How many gangs there should be, those included that wait for a place: 1 or more.

    `asked` is a fixed number; None is `auto`: as many as have a place or find one now, or up to `most`, so that Ray's
    autoscaler is asked for the others; and no more than there are batches of `work`. Gangs that were given up aren't
    tried again.
    """
    if asked is not None:
        return max(1, asked - given_up)
    there = placed + room if most is None else most
    there -= given_up
    return max(1, there if work is None else min(there, work))


class Elastic:
    """Starts and ends the gangs of a fleet as nodes join and leave, and as work runs out."""

    def __init__(self, fleet: Fleet, recovery: Recovery, parallel: ParallelConfig):
        self.fleet, self.recovery = fleet, recovery
        self.asked = None if parallel.gangs == "auto" else parallel.gangs
        self.most = parallel.gangs_max
        self._look_at = 0.0
        self._known: set[str] = set()  # ids of nodes
        self._surplus_since: float | None = None

    def look(self, work: int | None, *, grows: bool = True) -> None:
        """Does what is due, every LOOK_SECONDS; `work` is how many batches are left, None if that isn't known.

        Without `grows` nothing new is begun.
        """
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        nodes = self.fleet.nodes()
        if new := {node.id for node in nodes} - self._known:
            self._known |= new
            if self.asked is None:
                self.fleet.given_up = 0  # what failed on the nodes before may stand on these
        self._see_off({node.id: node.gone_at for node in nodes if node.gone_at is not None})
        if not grows:
            self._withdraw()
        elif not (self.fleet.spec.tests and self.fleet.gangs):
            self._resize(nodes, work)

    # --- nodes that leave ---

    def _see_off(self, leaving: dict[str, float]) -> None:
        """Ends what is on nodes that are to leave: at once what has nothing under way or doesn't stand yet."""
        for gang in self.fleet.all:
            moments = [leaving[arrival.node] for arrival in gang.arrivals if arrival.node in leaving]
            if not moments or gang.state is GangState.ENDING:
                continue
            if gang.leaves_at is None:
                left = min(moments) - now()
                log.warning("%s begins nothing new: its node is to leave%s", gang.name, _within(left), extra=_of(gang))
            gang.leaves_at = min(moments)
            self._keep_what_ends_in_time(gang)
            if not any(flight.gang is gang for flight in self.recovery.queues.flights):
                self.recovery.let_go(gang)

    def _keep_what_ends_in_time(self, gang: Gang) -> None:
        """Hands back the batches of a gang, the last one first, that won't be done when it leaves."""
        assert gang.leaves_at is not None
        queues, left = self.recovery.queues, gang.leaves_at - now() - HAND_OVER_SECONDS
        aboard = queues.aboard(gang)
        needs = [self.recovery.times.expected(flight) for flight in aboard]
        late: list[Flight] = []
        while aboard and (left <= 0 or sum(needs) > left):
            late.append(aboard.pop())
            needs.pop()
        if late and aboard and queues.at_work().get(gang) not in late:
            self.recovery.hand_back(late)
        elif late:
            self.recovery.hand_back([*aboard, *late])

    # --- the number of gangs ---

    def _resize(self, nodes: list[Node], work: int | None) -> None:
        gangs, spec = self.fleet.gangs, self.fleet.spec
        homeless = [gang for gang in gangs.values() if gang.state is GangState.PLACING and not gang.placed]
        beside = [bundle for gang in self.fleet.helpers if not gang.placed for bundle in gang.bundles]
        shape = bundles(spec, [node.total for node in nodes])
        placed = len(gangs) - len(homeless)
        free = room(shape, nodes, beside)
        if spec.device != "cuda" and self.most is None:  # cores say little of how many models a machine should hold
            free = min(free, max(0, hosts(shape, nodes) - placed))
        number = wanted(self.asked, placed=placed, room=free, work=work, most=self.most, given_up=self.fleet.given_up)
        for _ in range(number - len(gangs)):
            self.fleet.add()
        if number >= len(gangs):
            self._surplus_since = None
            return
        self._surplus_since = self._surplus_since or time.monotonic()
        ends: list[Gang] = []
        if work is not None and work < len(gangs):  # those first that a clip would reach last
            ends, why = sorted(self._idle(), key=_readiness), "no clip is left for it"
        elif time.monotonic() - self._surplus_since > LINGER_SECONDS:
            ends, why = homeless[::-1], f"no node has {amounts(shape[0])} for it"
        for gang in ends[: len(gangs) - number]:
            log.info("%s ends: %s", gang.name, why, extra=_of(gang))
            self.recovery.let_go(gang)

    def _withdraw(self) -> None:
        """Gangs and helpers that still wait for a place need none, and the autoscaler no longer sees them."""
        for gang in self.fleet.all:
            if gang.state is GangState.PLACING and not gang.placed:
                self.fleet.retire(gang)

    def _idle(self) -> Iterator[Gang]:
        """Gangs without any batch, the last ones first."""
        busy = {flight.gang for flight in self.recovery.queues.flights}
        return (gang for gang in reversed(self.fleet.gangs.values()) if gang not in busy)


def _readiness(gang: Gang) -> int:
    """How near a gang is to a clip."""
    if gang.state is GangState.STANDING:
        return 2
    return int(gang.placed)


def _within(seconds: float) -> str:
    return f" in {seconds:.0f} s" if isfinite(seconds) else ""


def _of(gang: Gang) -> dict[str, str]:
    """For its line in the log."""
    return {"gang": gang.name}
