"""Tells a Ray cluster that a part of it on this machine is to leave, so that its gangs hand their clips back.

    python -m cluster.runtime.leaving HOST:PORT FOLDER SECONDS

The part is the one whose temporary folder is FOLDER: there may be several on a machine. `ray drain-node` wants an id.
"""

import sys
import time

from cluster.private.ray import drain_node, nodes_in
from numina.errors import GangError


def leave(address: str, folder: str, seconds: float) -> None:
    """Raises GangError where the cluster has no such part."""
    nodes = nodes_in(address, folder)
    if not nodes:
        raise GangError(f"the Ray at {address} has no living node with its files in {folder}; none is drained")
    for node in nodes:
        drain_node(address, node, "its machine got notice", time.time() + seconds)


if __name__ == "__main__":
    leave(sys.argv[1], sys.argv[2], float(sys.argv[3]))
