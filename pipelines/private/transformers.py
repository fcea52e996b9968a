"""transformers' private names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from numina.private.library import Library

TRANSFORMERS = Library("transformers", ">=5.17,<5.24")


def from_config(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model as its config describes it, in a dtype."""
    module: nn.Module = TRANSFORMERS.private(kind, "_from_config")(config, dtype=dtype)
    return module


def dtype_plan(module: Any, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
    """Globs of the names of tensors that a model of `dtype` keeps in another one, and that."""
    plan: Mapping[str, torch.dtype] = TRANSFORMERS.private(module, "_get_dtype_plan")(dtype)
    return plan


def ignored_keys(module: Any) -> Sequence[str]:
    """Patterns of tensors that files may hold and the model doesn't."""
    return TRANSFORMERS.private(module, "_keys_to_ignore_on_load_unexpected") or ()


def grounding_dino_layers(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """A GroundingDINO's layers of the class GroundingDino`name`, each with what holds it and its name there."""
    module = TRANSFORMERS.module("transformers.models.grounding_dino.modeling_grounding_dino")
    kind = TRANSFORMERS.private(module, f"GroundingDino{name}")
    for parent in list(model.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, kind):
                yield parent, child, layer


def give_places(detector: Any, proposals: Callable[[Any, torch.device], tuple[Tensor, Tensor]]) -> None:
    """Makes a GroundingDINO compute places and boxes in float32: those that its encoder starts from, those that
    `proposals` gives for maps of these sizes, and all that its decoder makes of them."""
    model = detector.model
    points = TRANSFORMERS.private(model.encoder, "get_reference_points")
    TRANSFORMERS.private(model, "generate_encoder_output_proposals")
    head = TRANSFORMERS.private(model.decoder, "reference_points_head")

    def reference_points(sizes: Any, ratios: Tensor, device: torch.device) -> Tensor:
        found: Tensor = points(sizes, ratios.float(), device)
        return found

    def encoder_proposals(states: Tensor, mask: Tensor, sizes: Any) -> tuple[Tensor, Tensor]:
        boxes, inside = proposals(sizes, states.device)
        return model.enc_output_norm(model.enc_output(states.masked_fill(~inside, 0))), boxes

    model.encoder.get_reference_points = reference_points
    model.generate_encoder_output_proposals = encoder_proposals
    head.register_forward_pre_hook(lambda _, given: tuple(x.to(model.dtype) for x in given))
