"""Ray's private names. The texts are what Ray reads or writes: one that is gone does nothing."""

from typing import Any

from numina.private.library import Library

RAY = Library("ray", "==2.60.0")

AUTHENTICATION_LOGGER = "ray._private.authentication"  # warns whenever Ray starts as it should
TIMESTAMP_FIELD = "_ray_timestamp_ns"  # that Ray adds to log records
METRICS_PORT = "_metrics_export_port"  # option of `ray.init`: where Prometheus is served


def load_token() -> bool:
    """Takes the token of the user's home, which heads of `ray start` ask for; whether there is one. `ray.init` does so
    for `auto` alone."""
    setup = RAY.module("ray._private.authentication.authentication_token_setup")
    return bool(RAY.private(setup, "maybe_enable_token_auth_if_token_available")(warn_if_disabled=False))


def free_resources() -> dict[str, dict[str, float]]:
    """What is free on each living node, by its id and the resource's name."""
    free: dict[str, dict[str, float]] = RAY.private(_state(), "available_resources_per_node")()
    return free


def draining_nodes() -> dict[str, int]:
    """The ids of nodes that are to leave, with when: milliseconds since the epoch, 0 if nobody said."""
    leaving: dict[str, int] = RAY.private(_state(), "get_draining_nodes")()
    return leaving


def _state() -> Any:
    return RAY.private(RAY.module("ray._private.state"), "state")


def token_loader() -> Any:
    """What holds the token of this process."""
    return RAY.private(RAY.module("ray._raylet"), "AuthenticationTokenLoader").instance()


def nodes_in(address: str, folder: str) -> list[str]:
    """The ids of the living nodes of a cluster, which needn't be joined, that have their sockets in a folder."""
    found = _head(address).get_all_node_info(timeout=10).values()
    there = [node for node in found if node.raylet_socket_name.startswith(f"{folder}/") and not node.state]
    return [node.node_id.hex() for node in there]


def drain_node(address: str, node: str, why: str, until: float) -> None:
    """Tells a cluster that a node will be gone at a moment, in seconds since the epoch."""
    reason = RAY.module("ray.core.generated.autoscaler_pb2").DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    _head(address).drain_node(node, reason, why, int(until * 1000))


def _head(address: str) -> Any:
    return RAY.private(RAY.module("ray._raylet"), "GcsClient")(address=address)
