"""Where a gang's ranks go: bundles of a Ray placement group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from cluster.workers.member import Spec


def bundles(spec: Spec, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A gang's share of the cluster, in rank order: as few parts as its nodes allow, each to lie on one node.

    Where not even the smallest part fits a node, it is asked for all the same: a larger node may join.
    """
    for together in spec.together:
        bundle = {name: amount * together for name, amount in spec.need.items()}
        if any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes):
            break
    return [bundle] * (spec.ranks // together)


def node_sizes() -> list[dict[str, float]]:
    """What the cluster's living nodes have in all, used or not."""
    return [
        {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]
    ]


def amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
