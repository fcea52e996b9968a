"""A row: its columns, the key that names it, and the seed it is made from."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any

import pyarrow as pa

from numina.prompts import Target

STAGES = ("encode", "identify", "layout", "guide", "denoise", "decode", "write")

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
        ("gpu_seconds", pa.float64()),
        ("retries", pa.int32()),
        ("peak_memory_bytes", pa.int64()),
        ("video_sha256", pa.string()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
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

SEEDS = 2**63
"""How many there are; they go round."""


_JSON = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False
)  # made once: it takes longer than a key


def canonical_json(value: Any) -> str:
    """JSON in which equal values have equal text: keys sorted, 5.0 written 5, tuples as lists, enums as their value.

    Raises ValueError for NaN and infinities, TypeError for what JSON can't hold.
    """
    return _JSON.encode(canonical(value))


class RowKeys:
    """Keys of many rows under one configuration: its canonical JSON, the largest part of a key's, is hashed once.

    `config` is the resolved generation, method and strategy configuration; batch, worker count and parallel degrees
    don't belong in it.
    """

    def __init__(self, *, config: Mapping[str, Any], model_revision: str, algorithm_version: str | int) -> None:
        shared = {"algorithm_version": algorithm_version, "config": config, "model_revision": model_revision}
        opened = canonical_json(shared).removesuffix("}")  # in a sorted JSON the row's own names come after these
        self._opened = hashlib.blake2b(opened.encode(), digest_size=16)

    def key(self, *, prompt: str, negative_prompt: str | None, targets: Sequence[Target], seed: int) -> str:
        """32 hex digits that name one video by all that decides its pixels, and by nothing else.

        `seed` is the sample's own (see `sample_seed`).
        """
        own = {
            "negative_prompt": negative_prompt,
            "prompt": prompt,
            "seed": seed,
            "targets": [[target.noun, target.count] for target in targets],
        }
        key = self._opened.copy()
        key.update(f",{canonical_json(own).removeprefix('{')}".encode())
        return key.hexdigest()


def row_key(
    *,
    prompt: str,
    negative_prompt: str | None,
    targets: Sequence[Target],
    seed: int,
    config: Mapping[str, Any],
    model_revision: str,
    algorithm_version: str | int,
) -> str:
    """`RowKeys.key` of a single row."""
    keys = RowKeys(config=config, model_revision=model_revision, algorithm_version=algorithm_version)
    return keys.key(prompt=prompt, negative_prompt=negative_prompt, targets=targets, seed=seed)


class TaskDigests:
    """Digests of what is asked under one configuration, before targets are read from prompts.

    They recognise a finished task without its key, which needs the row parsed. Equal rows as they are given
    (`promptrows.row_texts`), in equal settings, have equal digests; nothing else enters.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        model_revision: str,
        algorithm_version: str | int,
        job_seed: int,
        sample: int,
        **more: Any,
    ) -> None:
        settings = {
            "algorithm_version": algorithm_version,
            "config": config,
            "job_seed": job_seed,
            "model_revision": model_revision,
            "sample": sample,
            **more,
        }
        self._settings = hashlib.blake2b(canonical_json(settings).encode(), digest_size=16)

    def of(self, texts: Iterable[bytes]) -> list[bytes]:
        """16 bytes for each row."""
        digests, begun = list[bytes](), self._settings.copy
        for text in texts:
            digest = begun()
            digest.update(text)
            digests.append(digest.digest())
        return digests


def sample_seed(row_seed: int | None, id: str | None, prompt: str, index: int, job_seed: int) -> int:
    """The seed of a row's sample number `index`, in [0, 2**63): the row's own seed + index, or else one that depends
    on the id (the prompt, where there is no id), the index and the job's seed alone."""
    if row_seed is not None:
        return (row_seed + index) % SEEDS
    name = ["prompt", prompt] if id is None else ["id", id]
    content = canonical_json([*name, index, job_seed]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") % SEEDS


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
            f"extra columns with a name of the output's own {taken}, unknown timings {stages} (known: {list(STAGES)})"
        )


def canonical(value: Any) -> Any:
    """A value in the form in which equal settings are equal: 5.0 as 5, tuples as lists, enums as their value."""
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"keys of a configuration must be strings, got {sorted(map(repr, value))}")
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no canonical form: a key needs finite numbers")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
