"""A clip's layouts as few bytes of text: what the page's scripts unpack and paint.

Shapes: labels, refined and regions [nouns, F, H, W] as in the layout files; packed, one byte a token.
"""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.dataset.layouts import arrays_of
from cluster.dataset.store import Store

_INSTANCES = 255  # that a noun can have in a byte; more share numbers, which costs an edge between two of them at most


def packed_layout(store: Store, file_name: str | None) -> dict[str, Any] | None:
    """The layout of a row: its sizes, and its planes (labels; then refined and regions, where there is a refined one)
    as base64 of zlib's bytes. None when the row has no layout, or its file is gone or torn."""
    if file_name is None:
        return None
    try:
        arrays = arrays_of(store.read(file_name))
        return arrays and pack(arrays)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sizes and planes of a layout file's arrays."""
    nouns, frames, height, width = arrays["labels"].shape
    planes = [_bytes(arrays["labels"])]
    refined = "refined" in arrays and "regions" in arrays
    if refined:
        planes += [_bytes(arrays["refined"]), arrays["regions"].astype(np.uint8)]
    content = b"".join(plane.tobytes() for plane in planes)
    return {
        "nouns": nouns,
        "frames": frames,
        "height": height,
        "width": width,
        "refined": refined,
        "planes": base64.b64encode(zlib.compress(content, 6)).decode(),
    }


def _bytes(labels: np.ndarray) -> np.ndarray:
    """Instances by numbers from 1 to 255; 0 where there is none."""
    numbers: np.ndarray = np.where(labels > 0, (labels - 1) % _INSTANCES + 1, 0).astype(np.uint8)
    return numbers
