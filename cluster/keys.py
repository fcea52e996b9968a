"""Canonical JSON, and the keys, digests and seeds made of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from numina.prompts.targets import Target

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


class TaskDigests:
    """Digests of what is asked under one configuration, before targets are read from prompts.

    They recognise a finished task without its key, which needs the row parsed. Equal rows as they are given
    (`prompts.row.row_texts`), in equal settings, have equal digests; nothing else enters.
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
