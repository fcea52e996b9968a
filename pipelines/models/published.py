"""What a checkpoint holds, as far as planning needs it: of a folder, or of a published one that isn't here.

`published/` has the configs of the hub's checkpoints that `configs/` names, and how many numbers their weights are
(`python -m tests.benchmarks.published`, which names its sources). A checkpoint that is here is read itself, and wins.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from pipelines.base import ModelFacts
from pipelines.checkpoints.files import WEIGHTED, Config, header_of, read_json, weight_files
from pipelines.models.families import FAMILIES

FOLDER = Path(__file__).parent / "published"
UNREAD = "published"  # the revision of facts that no file here was read for: it enters no key
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Part:
    """Numbers of a part's weights, the most that ZeRO-3 gathers at once (a block, or embeddings), and bytes stored."""

    parameters: int
    largest: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checkpoint's configs by part, and its parts with weights."""

    configs: Mapping[str, Config]
    parts: Mapping[str, Part]


def contents_of(model: ModelFacts) -> Contents:
    """From a folder's configs and the headers of its weight files, or as published; no weight is read."""
    if model.revision == UNREAD:
        known = _published()[model.path]
        sizes = {
            part: Part(own["parameters"], own["largest"], own["parameters"] * BYTES[own["dtype"]])
            for part, own in known["weights"].items()
        }
        return Contents(configs=known["configs"], parts=sizes)
    folder = Path(model.path)
    return Contents(
        configs={part: read_json(folder / part / "config.json") for part in WEIGHTED},
        parts={part: _part(folder / part) for part in WEIGHTED},
    )


def published_facts(path: str) -> ModelFacts | None:
    """What the checkpoint of a hub id is, without any of its files; None where its configs aren't shipped."""
    known = _published().get(path)
    if known is None:
        return None
    name = known["model_index"]["_class_name"]
    return FAMILIES[name].facts(name, known["configs"], path=path, title=path, revision=UNREAD)


def published_names() -> list[str]:
    """The hub ids whose configs are shipped."""
    return sorted(_published())


@cache
def _published() -> dict[str, dict[str, Any]]:
    """By hub id."""
    read = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json")))
    return {content["repository"]: content for content in read}


def _part(folder: Path) -> Part:
    blocks: Counter[str] = Counter()
    stored = 0
    for file in weight_files(folder):
        stored += file.stat().st_size
        for name, tensor in header_of(file).items():
            numbered = re.match(r".*?\.\d+\.", name)
            blocks[numbered[0] if numbered else name.rpartition(".")[0]] += prod(tensor["shape"])
    return Part(blocks.total(), max(blocks.values()), stored)
