"""A layout's file is read whole or not at all, by any number of threads."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.dataset import layouts

ARRAYS = {name: np.arange(8, dtype=np.int16).reshape(2, 1, 2, 2) for name in ("labels", "refined", "regions")}


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython's parser, by which numpy reads headers, now and then fails where two threads are in it."""
    inside, most, load = list[int](), list[int](), np.load

    @contextmanager
    def watched(*given: Any, **named: Any) -> Iterator[Any]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        with load(*given, **named) as arrays:
            yield arrays
        inside.pop()

    monkeypatch.setattr(np, "load", watched)
    data = layouts._npz(ARRAYS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(layouts.arrays_of, [data] * 40))
    assert (len(most), max(most)) == (40, 1)
    for arrays in found:
        assert arrays is not None
        assert arrays.keys() == ARRAYS.keys()
        np.testing.assert_array_equal(arrays["labels"], ARRAYS["labels"])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", layouts._npz(ARRAYS)[:-30]], ids=["empty", "no zip", "torn"])
def test_a_torn_file_has_no_arrays(data: bytes) -> None:
    """Nothing, no zip, and a zip that ends early."""
    assert layouts.arrays_of(data) is None
