"""One node's checks, for `numina doctor --on-cluster`: needs as JSON on stdin, lines as JSON on stdout.

A process of its own: checks are forked, and a Ray worker has threads that a fork would cut off.
"""

import json
import sys

import ray
import torch

from cluster.doctor.check import examine
from cluster.doctor.checks import CHECKS, TORCH
from cluster.doctor.needs import Needs

if __name__ == "__main__":
    assert ray
    assert torch
    needs = Needs(**json.load(sys.stdin))
    checks = TORCH | {name: check for name, check in CHECKS.items() if check.everywhere}
    json.dump([result.as_json() for result in examine(checks, needs)], sys.stdout)
