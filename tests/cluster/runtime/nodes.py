"""Ray's own cluster of processes on one machine: adds and drains nodes."""

import subprocess
import sys

QUICK = {  # a node is dead after a second without a process that answers, and not before it is silent for long
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 2,
}


def drain(address: str, node: str, seconds: int) -> None:
    """Gives a node notice, as an autoscaler does for a spot machine that will be taken away."""
    command = ["drain-node", "--address", address, "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    notice = ["--reason-message", "a test", "--deadline-remaining-seconds", str(seconds)]
    entry = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", entry, *command, *notice], check=True, capture_output=True)
