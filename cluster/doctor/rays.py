"""Ray: ports that it wants, and the cluster that the job joins or starts."""

import socket

from cluster.doctor.check import Finding, fails, ok, warning
from cluster.doctor.needs import Needs

HEAD = 6379  # where `ray start --head` listens


def ports(needs: Needs) -> Finding:
    """This machine reaches itself at the address that its ranks tell each other; a port that was asked for is free."""
    import ray

    from cluster.observability.metrics import is_free

    own = ray.util.get_node_ip_address()
    try:
        with socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET) as listening:
            listening.bind((own, 0))
            listening.listen()
            socket.create_connection((own, listening.getsockname()[1]), timeout=3.0).close()
    except OSError as error:
        return fails(
            f"this machine can't be reached at its own address {own} ({error})",
            "open ports 1024 to 65535 between the nodes, and give the host name its address in /etc/hosts",
        )
    if needs.metrics_port and not is_free(needs.metrics_port):
        return warning(
            f"port {needs.metrics_port} of cluster.metrics_port is taken: metrics are served at a free one",
            "give another port, or 0",
        )
    if not needs.job and _is_taken(HEAD):
        from cluster.job.joining import running_clusters

        if not running_clusters():
            return warning(f"port {HEAD} is taken, and not by Ray", "start Ray with `ray start --head --port 6380`")
    return ok(f"{own} can be reached")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ray_cluster(needs: Needs) -> Finding:
    """One is joined, or one of the job's own is started, given a task, and ended."""
    import ray

    from cluster.job.joining import joined, reachable

    address = reachable(needs.address)
    if address != "local":
        return ok(f"Ray {ray.__version__} answers at {address}")
    with joined("local", num_cpus=1):
        task = ray.remote(lambda: ray.util.get_node_ip_address())
        place = ray.get(task.remote(), timeout=12.0)
    return ok(f"Ray {ray.__version__} starts here, and runs a task at {place}")
