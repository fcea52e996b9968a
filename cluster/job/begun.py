"""The default preset of an output: that with which an earlier version began it, so that it is resumed as it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cluster.dataset.store import Store
from cluster.job.config import JobConfig, load_job, names_setting
from cluster.keys import canonical_json

EARLIER = {"peaks": "closed"}  # by what instances are read from: the default before `fused`
log = logging.getLogger(__name__)


def as_begun(
    job: JobConfig, config: str | Path | None, overrides: Sequence[str], extra: str | None = None
) -> JobConfig:
    """A job that `load_job` read from a file and overrides; where these name no preset, with that of its output.

    Raises DamageError for an output whose run.json can't be read.
    """
    if names_setting(config, overrides, "method.preset"):
        return job
    method = (Store(job.output, single_writer=True).run_config() or {}).get("method", {})
    preset = EARLIER.get(method.get("identify", {}).get("source", ""))
    if preset is None or canonical_json(method) == canonical_json(job.method.named()):
        return job
    log.info("the output was begun with method.preset=%s, the default then: it goes on with it", preset)
    return load_job(config, [*overrides, f"method.preset={preset}"], extra)
