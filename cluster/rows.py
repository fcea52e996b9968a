"""A row: its columns, the key that names it, and the seed it is made from."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import pyarrow as pa

from numina.stage import Stage

STAGES = (Stage.ENCODE, Stage.IDENTIFY, Stage.LAYOUT, Stage.GUIDE, Stage.DENOISE, Stage.DECODE, Stage.WRITE)
"""The stages whose seconds a row has, in the order of its `timings`."""

TARGETS = pa.list_(pa.struct([("noun", pa.string()), ("count", pa.int32())]))
IDENTIFIED = pa.list_(pa.struct([("noun", pa.string()), ("frames", pa.list_(pa.int32())), ("count", pa.int32())]))
SPANS = pa.list_(
    pa.struct([("stage", pa.string()), ("place", pa.string()), ("began", pa.float64()), ("seconds", pa.float64())])
)
DETECTED = pa.list_(pa.struct([("noun", pa.string()), ("frames", pa.list_(pa.int32()))]))

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("file_name", pa.string()),
        ("prompt", pa.string()),
        ("original_prompt", pa.string()),  # null unless the strategy rewrote it
        ("negative_prompt", pa.string()),
        ("targets", TARGETS),
        ("strategy", pa.string()),  # what generated it: `Strategy.base`
        ("sample", pa.int32()),
        ("attempt", pa.int32()),  # 0: the sample's own seed; later ones follow from it
        ("strength", pa.float64()),  # factor on the guidance; other than 1 where a retry is guided more
        ("chain", pa.string()),  # the same for all attempts of a sample: the first one's task digest
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("code_version", pa.string()),
        ("config_hash", pa.string()),
        ("task_digest", pa.string()),  # what was asked, before targets were read from the prompt: `TaskDigests`
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("engine", pa.string()),
        ("ulysses", pa.int32()),
        ("ring", pa.int32()),
        ("cfg", pa.int32()),
        ("cache", pa.string()),
        ("identified", IDENTIFIED),
        ("guided", pa.bool_()),
        ("shortfall", pa.list_(pa.int32())),
        ("layout_file", pa.string()),
        ("latents_file", pa.string()),  # null where they weren't asked for: `JobConfig.latents`
        ("timings", pa.struct([(stage, pa.float64()) for stage in STAGES])),
        ("spans", SPANS),  # when and where each stage ran; `began` in seconds since the epoch, by the driver's clock
        ("gpu_seconds", pa.float64()),  # rank_seconds on GPUs, null on CPUs
        ("rank_seconds", pa.float64()),  # that its gang was busy with the clip, times its ranks; null in older rows
        ("retries", pa.int32()),
        ("peak_memory_bytes", pa.int64()),
        ("video_sha256", pa.string()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
        ("gpu_name", pa.string()),  # null on CPUs; this and what follows is null in older rows
        ("torch_version", pa.string()),
        ("attention_kernel", pa.string()),  # of self-attention, by its engine's name for it
    ]
)
"""The columns of every row; the prompt set's own columns follow them. A missing one is null, unless REQUIRED."""

REQUIRED = ("key", "file_name", "prompt", "targets", "strategy", "seed", "video_sha256")

UNIQUE = pa.list_(pa.struct([("noun", pa.string()), ("count", pa.int32())]))

EVALUATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("judge", pa.string()),
        ("detected", DETECTED),  # null where the judge doesn't count, or there was no video
        ("count_accuracy", pa.float64()),  # null where the judge doesn't count
        ("problem", pa.string()),  # missing | unreadable: …; null where the video could be judged
        ("unique", UNIQUE),  # objects of the whole clip; null without tracks
        ("clip_score", pa.float64()),
        ("temporal_consistency", pa.float64()),
        ("settings", pa.string()),  # the judge's, as canonical JSON
        ("seconds", pa.float64()),  # of judging, a clip's share of its batch
        ("chain", pa.string()),  # the row's own, so that a job knows without it which samples are settled
        ("attempt", pa.int32()),
        ("strength", pa.float64()),
    ]
)
"""The columns of all judges' verdicts."""


def plain_value(value: Any) -> Any:
    """Dataclasses and tuples as the dicts and lists that pyarrow knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value


def check_row(row: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if row.get(name) is None]
    unknown = sorted(row.keys() - set(ROW_SCHEMA.names))
    taken = sorted(extra.keys() & set(ROW_SCHEMA.names))
    stages = sorted((row.get("timings") or {}).keys() - set(STAGES))
    if missing or unknown or taken or stages:
        raise ValueError(
            f"a row lacks {missing}, has the unknown columns {unknown} (a prompt set's own go under 'extra'), "
            f"extra columns with a name of the output's own {taken}, "
            f"unknown timings {stages} (known: {list(map(str, STAGES))})"
        )
