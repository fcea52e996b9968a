"""The models' libraries: a private name that is gone is one sentence, wherever it is used."""

from pathlib import Path

import pytest
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from transformers import PreTrainedModel

from numina.errors import LibraryError
from pipelines.models.registry import load_model
from pipelines.models.wan import WanModel
from pipelines.sampling.cache import cached


@pytest.mark.parametrize(
    ("owner", "name", "library"),
    [
        (PreTrainedModel, "_from_config", "transformers"),
        (PreTrainedModel, "_get_dtype_plan", "transformers"),
        (ModelMixin, "_keys_to_ignore_on_load_unexpected", "diffusers"),
    ],
)
def test_loading_says_what_is_gone(
    owner: type, name: str, library: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, with its library's version and the one that was tested."""
    kinds = {owner, *WanModel.kinds.text_encoder.__mro__, *WanModel.kinds.transformer.__mro__}
    for kind in (kind for kind in kinds if issubclass(kind, owner) and name in vars(kind)):
        monkeypatch.delattr(kind, name)
    with pytest.raises(LibraryError, match=rf"^{library} \S+ has no \w+\.{name}, .*pip install '{library}[=>]"):
        load_model(str(tiny_checkpoint), device="cpu")


def test_a_step_cache_says_what_is_gone(tiny_model: WanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is off afterwards."""
    monkeypatch.delattr(CacheMixin, "_reset_stateful_cache")
    gone = pytest.raises(LibraryError, match=r"^diffusers \S+ has no WanTransformer3DModel\._reset_stateful_cache")
    with gone, cached(tiny_model.transformer, "taylorseer", range(4), 4):
        pass
    tiny_model.transformer.disable_cache()
