"""Rows of an output without a model."""

import hashlib
from pathlib import Path
from typing import Any

from cluster.dataset.store import Store
from numina.prompts.targets import Target

CATS = (Target(noun="cats", count=3),)


def key_of(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def a_row(key: str, store: Store, video: bytes = b"video", **columns: Any) -> dict[str, Any]:
    file_name, sha256 = store.put_video(key, video)
    return {
        "key": key,
        "file_name": file_name,
        "video_sha256": sha256,
        "prompt": "three cats",
        "targets": CATS,
        "strategy": "numina",
        "seed": 7,
        **columns,
    }


def leaves(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
