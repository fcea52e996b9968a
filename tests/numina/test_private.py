"""A library's private name that is gone is one sentence: which, of what version, and what to install."""

import re
from importlib.metadata import version

import pytest
import torch

from numina.errors import LibraryError
from numina.private.library import Library
from numina.private.torch import TORCH, mark_dynamic


def test_a_name_that_is_gone_is_said_with_its_library_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is used, not by an AttributeError deep inside."""
    monkeypatch.delattr(torch._dynamo, "maybe_mark_dynamic")
    said = (
        f"torch {version('torch')} has no torch._dynamo.maybe_mark_dynamic, which numina uses; install a version that"
        f" was tested: pip install 'torch{TORCH.tested}'"
    )
    with pytest.raises(LibraryError, match=f"^{re.escape(said)}$"):
        mark_dynamic(torch.zeros(2), 0)


def test_a_module_that_is_gone_is_said_likewise() -> None:
    """Also of a library that isn't installed as a distribution."""
    with pytest.raises(LibraryError, match=r"^torch \S+ has no torch\._gone, which"):
        TORCH.module("torch._gone")
    with pytest.raises(LibraryError, match=r"^nothing of an unknown version has no nothing"):
        Library("nothing", "==1").module("nothing")
