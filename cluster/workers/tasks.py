"""What is done with clips beside the gangs, as Ray tasks on any CPU of the cluster: layout, writing, compaction."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import ray

from cluster.dataset.store import Store
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.workers.row import layout_arrays, row_of
from numina.errors import ClipError, DamageError, InputError, OutputError, StorageError
from numina.stage import Stage
from pipelines.sampling.clip import Clip, Identified

if TYPE_CHECKING:
    import pyarrow as pa

    from numina.config import MethodConfig
    from numina.correct import Correction

LAYOUT_CPUS = 0.5  # a layout task is short; two of them share a core
WRITE_CPUS = 1.0
COMPACT_CPUS = 0.5

Spans = list[dict[str, Any]]  # the row column of this name


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a job's rows go, and what they are made of: all that a writing process needs to know."""

    prepared: PreparedJob  # without the prompt set's files and ids: there may be many
    extra_columns: pa.Schema

    @classmethod
    def of(cls, prepared: PreparedJob) -> Self:
        where = prepared.job.output
        job = replace(
            prepared.job, output=where if "://" in where else os.path.abspath(where)
        )  # workers start elsewhere
        lean = replace(prepared, job=job, prompts=replace(prepared.prompts, files=(), implied_ids={}))
        return cls(prepared=lean, extra_columns=prepared.prompts.extra_columns)

    def store(self) -> Store:
        """A holder of the output."""
        job = self.prepared.job
        return Store(job.output, single_writer=job.single_writer, extra_columns=self.extra_columns)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What the driver knows of a clip's row before its mp4 is there."""

    task: ClipTask
    correction: Correction | None  # None for a plain clip
    timings: Mapping[Stage, float]  # of what was done outside the gang
    spans: Spans
    retries: int
    lost_seconds: float = 0.0  # of ranks, in tries before this one


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A committed row, as far as counts and metrics go."""

    key: str
    won: bool  # False: the row was there already, by another driver or an earlier try of this task
    row: Mapping[str, Any]  # the columns of RECEIPT_COLUMNS


RECEIPT_COLUMNS = ("strategy", "guided", "steps", "timings", "gpu_seconds")


@ray.remote
def lay_out(
    identified: Sequence[Identified | InputError | ClipError], tasks: Sequence[ClipTask], method: MethodConfig
) -> list[tuple[Correction, float] | InputError | ClipError]:
    """Layout, refinement and plan of a batch's clips; and the seconds each took. Errors stay in their places."""
    from numina.correct import correct  # scikit-learn takes a second to import, and only layout tasks need it

    answers: list[tuple[Correction, float] | InputError | ClipError] = []
    for seen, task in zip(identified, tasks, strict=True):
        if isinstance(seen, (InputError, ClipError)):
            answers.append(seen)
            continue
        began = time.perf_counter()
        correction = correct(seen.capture, task.row.targets, seen.spans, method)
        answers.append((correction, time.perf_counter() - began))
    return answers


@ray.remote
def write(
    clips: Sequence[Clip | ClipError], drafts: Sequence[Draft], output: Output, began: float
) -> list[Receipt | InputError | ClipError]:
    """Makes the clips' mp4s and commits their rows; for a clip that came out broken or can't be written, why.

    Frames come here from the gang's node, and neither they nor the videos go through the driver. `began` is when it was
    asked for, by the driver's clock.
    """
    store = store_of(output)
    return [
        clip if isinstance(clip, ClipError) else _write(store, output.prepared, clip, draft, began)
        for clip, draft in zip(clips, drafts, strict=True)
    ]


@ray.remote
def compact(keys: Sequence[str], output: Output, judge: str | None) -> list[str]:
    """Gathers these rows, or a judge's verdicts on them, into segments; their names."""
    store = store_of(output)
    return store.compact(keys) if judge is None else store.compact_evaluations(judge, keys)


def _write(
    store: Store, prepared: PreparedJob, clip: Clip, draft: Draft, began: float
) -> Receipt | InputError | ClipError:
    """One clip. What is wrong with it or its row is its own: neither the job nor the clips beside it end with it."""
    from pipelines.sampling.write import write_clips

    try:
        [written] = write_clips([clip], prepared.job.generation, keep_frames=False)
        return _commit(store, prepared, written, draft, began)
    except (StorageError, DamageError, OutputError, OSError, MemoryError):  # not the clip's
        raise
    except InputError as error:
        return error
    except Exception as error:
        return ClipError(f"the clip can't be written: {type(error).__name__}: {error}", Stage.WRITE)


def _commit(store: Store, prepared: PreparedJob, clip: Clip, draft: Draft, began: float) -> Receipt:
    clip = replace(clip, timings={**clip.timings, **draft.timings})
    file_name, digest = store.put_video(draft.task.key, clip.mp4)
    row = row_of(prepared, draft.task, clip, draft.correction, draft.retries, draft.lost_seconds)
    row |= {"file_name": file_name, "video_sha256": digest}
    if draft.correction is not None:
        row["layout_file"] = store.put_layout(draft.task.key, layout_arrays(draft.task, draft.correction))
    if clip.latents is not None:
        made_by = f"{prepared.model.name}@{prepared.model.revision}"
        row["latents_file"] = store.put_latents(draft.task.key, clip.latents, made_by)
    spent = {"stage": Stage.WRITE, "place": "cpu", "began": began, "seconds": clip.timings[Stage.WRITE]}
    won = store.commit(row | {"spans": [*draft.spans, spent]})
    return Receipt(key=draft.task.key, won=won, row={name: row[name] for name in RECEIPT_COLUMNS})


_stores: dict[str, Store] = {}  # this process's, by where they are


def store_of(output: Output) -> Store:
    """This process's holder of the output.

    Raises StorageError on a node that doesn't see the job's output: rows written there would be lost."""
    root = output.prepared.job.output
    if root not in _stores:
        store = output.store()
        if store.run_config() is None:
            raise StorageError(
                f"output {store.root!r} isn't there on node {ray.util.get_node_ip_address()}, but the job uses it: "
                "give a folder that all nodes share, or an object store such as s3://bucket/folder"
            )
        _stores[root] = store
    return _stores[root]
