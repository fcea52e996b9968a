"""A Ray whose autoscaler starts and ends nodes on this machine, each with a raylet of its own.

`ray.cluster_utils.AutoscalingCluster` can't be used: it ends all Rays of the machine (`ray stop --force`), its port is
fixed, and it needs a file that Ray's wheel lacks. Autoscaler and node provider are the same here.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from tests.cluster.runtime.nodes import QUICK
from tests.forks import family, words
from tests.slurm.conftest import free_ports, wait_until

ENTRY = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
HEAD = "ray.head.default"
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


class Autoscaled:
    """A head, and up to `most` nodes when something asks for them; one that was idle for `idle` seconds goes."""

    def __init__(self, *, head_cpus: int, node_cpus: int, most: int, idle: float):
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        port, client_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        provider = {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": self.address,
        }
        config = {
            "cluster_name": "test",
            "provider": provider,
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "max_workers": most,
            "available_node_types": {
                HEAD: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
                "node": {"resources": {"CPU": node_cpus}, "node_config": {}, "max_workers": most},
            },
            "head_node_type": HEAD,
            "idle_timeout_minutes": idle / 60,
        }
        file = self.folder / "autoscaler.json"
        file.write_text(json.dumps(config | {f"{name}_commands": [] for name in COMMANDS}))
        environment = os.environ | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",  # as `ray up` and KubeRay have it
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": HEAD,
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "disabled",  # `ray start` would take a token from the home folder, a test does not
        }
        # Other Rays may run on this host: none of the ports may be a fixed one.
        options = ["--head", "--block", f"--port={port}", f"--ray-client-server-port={client_port}"]
        options += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        options += ["--include-dashboard=false", "--disable-usage-stats", f"--num-cpus={head_cpus}"]
        options += [f"--autoscaling-config={file}", f"--system-config={json.dumps(QUICK)}"]
        with (self.folder / "head.log").open("w") as log:
            command = [sys.executable, "-c", ENTRY, "start", *options]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: "Ray runtime started" in self.log() or self.process.poll() is not None, 120, self.log)
            assert self.process.poll() is None, self.log()
        except BaseException:
            self.end()
            raise

    def log(self) -> str:
        """What the head and the autoscaler have said."""
        files = [self.folder / "head.log", *self.folder.glob("ray/session_2*/logs/monitor.*")]
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)

    @property
    def launched(self) -> int:
        """Nodes that the autoscaler has started so far."""
        words = [line.split("Adding ")[1].split()[0] for line in self.log().splitlines() if " -- Adding " in line]
        return sum(map(int, words))

    def nodes(self) -> int:
        """How many nodes run here, the head's own among them: raylets."""
        return sum("".join(words(process)[:1]).endswith("/raylet") for process in family(self.process.pid))

    def end(self) -> None:
        """Ends Ray with all of its processes."""
        processes = family(self.process.pid)
        self.process.terminate()
        self.process.wait(60)
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
