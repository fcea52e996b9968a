"""The runtime: command line, job config, prompt sets, gangs, scheduling, commits, reports."""

import sys
from importlib.util import find_spec
from pathlib import Path

# `pipelines` is a common name: where the folder that Python was started in, or PYTHONPATH, has another one, the
# packages beside this one go first.
_ROOT = Path(__file__).resolve().parents[1]
for _name in ("numina", "pipelines"):
    _found = find_spec(_name)
    if _found is None or not _found.origin or Path(_found.origin).resolve().parents[1] != _ROOT:
        if _name in sys.modules:
            raise ImportError(f"{_name} was imported from {_found and _found.origin}, but numina's is in {_ROOT}")
        sys.path.insert(0, str(_ROOT))
