"""The row that a finished clip becomes, and what of its layout is kept beside it."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.job.config import config_hash
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.workers.code import code_digest
from numina.stage import BESIDE_GANGS, Stage
from pipelines.sampling.cache import cache_label
from pipelines.sampling.clip import Clip

if TYPE_CHECKING:
    from numina.correct import Correction


def row_of(
    prepared: PreparedJob, task: ClipTask, clip: Clip, correction: Correction | None, retries: int, lost: float = 0.0
) -> dict[str, Any]:
    """A finished clip's columns, without the names of its files. `correction` is None for a plain clip; `lost` are
    seconds of ranks that its tries before took."""
    job, generation, parallel = prepared.job, prepared.job.generation, prepared.job.parallel
    method = job.methods[task.strategy]
    elsewhere = {*BESIDE_GANGS, *([Stage.ENCODE] if prepared.encodes_apart else [])}
    busy = sum(seconds for stage, seconds in clip.timings.items() if stage not in elsewhere) * parallel.ranks
    refinement = correction.refinement if correction else None
    return {
        "key": task.key,
        "id": task.row.id,
        "prompt": task.row.prompt,
        "original_prompt": task.row.original_prompt,
        "negative_prompt": task.row.negative_prompt,
        "targets": task.row.targets,
        "strategy": task.strategy,
        "sample": task.sample,
        "attempt": task.attempt,
        "strength": task.strength,
        "chain": task.chain,
        "seed": task.seed,
        "model": prepared.model.name,
        "model_revision": prepared.model.revision,
        "code_version": code_version(),
        "config_hash": config_hash(job.row_config(task.strategy, prepared.dtype, task.strength)),
        "task_digest": task.digest,
        "width": generation.width,
        "height": generation.height,
        "num_frames": generation.num_frames,
        "fps": generation.fps,
        "steps": generation.steps,
        "guidance_scale": generation.guidance_scale,
        "engine": prepared.engine,
        "ulysses": parallel.ulysses,
        "ring": parallel.ring,
        "cfg": parallel.cfg,
        "cache": cache_label(method.identify.cache if method else None, generation.cache),
        "identified": identified_counts(task, correction) if correction else None,
        "guided": refinement is not None,
        "shortfall": list(refinement.shortfall) if refinement else None,
        "confidences": confidences(correction) if correction else None,
        "left_alone": correction.left_alone if correction else None,
        "timings": clip.timings,
        "gpu_seconds": busy if prepared.device == "cuda" else None,
        "rank_seconds": busy,
        "lost_seconds": lost,
        "retries": retries,
        "peak_memory_bytes": clip.peak_memory_bytes,
        **(asdict(clip.ran) if clip.ran else {}),
        "extra": task.row.extra,
    }


def layout_arrays(task: ClipTask, correction: Correction) -> dict[str, np.ndarray]:
    """What a layout file holds: `labels` and, where corrected, `refined` int16 and `regions` int8 [nouns, F, H, W];
    `confidence` float64 [nouns], where the reading tells it."""
    arrays: dict[str, np.ndarray] = {
        "nouns": np.array([target.noun for target in task.row.targets]),
        "labels": correction.identified.labels,
    }
    if correction.identified.confidence is not None:
        arrays["confidence"] = correction.identified.confidence.astype(np.float64)
    if correction.refinement is not None:
        arrays["refined"] = correction.refinement.layout.labels
        arrays["regions"] = correction.refinement.regions
    return arrays


def identified_counts(task: ClipTask, correction: Correction) -> list[dict[str, Any]]:
    """The row column `identified`: per noun its count in every latent frame and in the clip."""
    per_frame, per_clip = correction.identified.counts(), correction.identified.clip_counts()
    return [
        {"noun": target.noun, "frames": frames.tolist(), "count": int(count)}
        for target, frames, count in zip(task.row.targets, per_frame, per_clip, strict=True)
    ]


def confidences(correction: Correction) -> list[float] | None:
    """The row column of this name: in the order of the targets; None where the reading doesn't tell."""
    found = correction.identified.confidence
    return None if found is None else [float(own) for own in found]


@cache
def code_version() -> str:
    """numina's version, and what tells its code from another one's of this version: `0.1.0+` and 12 hex digits."""
    return f"{_version()}+{code_digest()[:12]}"


def _version() -> str:
    """As it is installed; of a checkout that isn't, the version that it would be installed as."""
    try:
        return version("numina-video")
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
