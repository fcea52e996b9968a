"""Where a gang's ranks go: bundles of a Ray placement group, the nodes there are, and the gangs that find room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import ray

from cluster.private.ray import draining_nodes, free_resources
from cluster.workers.member import Spec

KINDS = ("CPU", "GPU")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of the cluster."""

    id: str  # Ray's
    total: Mapping[str, float]  # of CPU and GPU
    free: Mapping[str, float]  # of these, what nobody has reserved now
    gone_at: float | None = None  # of a node that is to leave: seconds since the epoch, inf if nobody said when


def bundles(spec: Spec, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A gang's share of the cluster, in rank order: as few parts as its nodes allow, each to lie on one node.

    Where not even the smallest part fits a node, it is asked for all the same: a larger node may join.
    """
    for together in spec.together:
        bundle = {name: amount * together for name, amount in spec.need.items()}
        if any(_fits(bundle, node) for node in nodes):
            break
    return [bundle] * (spec.ranks // together)


def room(gang: Sequence[Mapping[str, float]], nodes: Sequence[Node], first: Sequence[Mapping[str, float]] = ()) -> int:
    """How many gangs of these bundles find a place now, once the bundles in `first` have theirs. None is on a node that
    is to leave."""
    left = [dict(node.free) for node in nodes if node.gone_at is None]
    for bundle in first:
        if node := next((own for own in left if _fits(bundle, own)), None):
            node |= {name: node[name] - amount for name, amount in bundle.items()}
    bundle = {name: amount for name, amount in gang[0].items() if amount}
    parts = sum(int(min(node.get(name, 0.0) // amount for name, amount in bundle.items())) for node in left)
    return parts // len(gang)


def hosts(gang: Sequence[Mapping[str, float]], nodes: Sequence[Node]) -> int:
    """How many gangs of these bundles there are at one bundle per node, whatever is free."""
    return sum(_fits(gang[0], node.total) for node in nodes if node.gone_at is None) // len(gang)


def living_nodes() -> list[Node]:
    """The cluster's living nodes, as Ray's head knows them."""
    free, leaving = free_resources(), draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            total=_of_kinds(node["Resources"]),
            free=_of_kinds(free.get(node["NodeID"], {})),
            gone_at=(leaving[node["NodeID"]] / 1000 or inf) if node["NodeID"] in leaving else None,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def node_sizes() -> list[dict[str, float]]:
    """What the cluster's living nodes have in all, used or not."""
    return [_of_kinds(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


def _of_kinds(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in KINDS}
