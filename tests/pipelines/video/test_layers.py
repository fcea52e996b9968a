"""A decoder's layers as a GPU runs them, on a CPU: the same but for rounding."""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

from pipelines.video.decode import _frames
from pipelines.video.layers import fast_layers
from tests.pipelines.video.test_decode import Case, build


def frames_of(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(_frames(vae, latents.to(vae.dtype))), dim=2).float()


@pytest.mark.parametrize("vae", ["tiny", "residual", "testbed"])
def test_a_gpus_layers_give_the_same_frames(vae: str) -> None:
    """A batch, with a first chunk and later ones. In bfloat16 they are as near to float32 as diffusers' are."""
    exact, rounded = build(vae), build(vae, torch.bfloat16)
    latents = Case(vae, clips=2, frames=3).latents(exact.config.z_dim)
    plain, plain_rounded = frames_of(exact, latents), frames_of(rounded, latents)
    with fast_layers(exact.decoder, on_gpu=True), fast_layers(rounded.decoder, on_gpu=True):
        fast, fast_rounded = frames_of(exact, latents), frames_of(rounded, latents)
    torch.testing.assert_close(fast, plain, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        frames_of(exact, latents), plain, atol=2e-5, rtol=0
    )  # weights in another order of memory
    assert (fast_rounded - plain).square().mean() < 1.1 * (plain_rounded - plain).square().mean()
    assert plain.std() > 0.05, "frames that are all alike would prove nothing"


def test_no_activation_is_lost_or_done_twice() -> None:
    """Norms that none follows, those of attention, stay diffusers' own."""
    decoder = build("tiny").decoder
    with fast_layers(decoder, on_gpu=True):
        norms = {name for name, layer in decoder.named_modules() if type(layer) is WanRMS_norm}
        changed = {name for name, layer in decoder.named_modules() if "forward" in vars(layer)}
        blocks = tuple(f"{name}." for name in changed if "resnets" in name)
        own = {name for name in norms - changed if "attentions" not in name and not name.startswith(blocks)}
    assert not own
    assert any(name.endswith("resnets.0") for name in changed)
    assert all("forward" not in vars(layer) for layer in decoder.modules())


def test_few_channels_are_filled_up() -> None:
    """Three of pixels become eight in the kernel, and three again; values and gradients' absence stay."""
    torch.manual_seed(0)
    layer = WanCausalConv3d(16, 3, 3, padding=1).requires_grad_(False)
    x, before = torch.randn(2, 16, 4, 5, 6), torch.randn(2, 16, 2, 5, 6)
    shapes, convolve = [], torch.nn.functional.conv3d

    def seen(x: torch.Tensor, weight: torch.Tensor, *more: object) -> torch.Tensor:
        shapes.append(weight.shape[0])
        return convolve(x, weight, *more)

    with pytest.MonkeyPatch.context() as patch, fast_layers(layer, on_gpu=True):
        patch.setattr(torch.nn.functional, "conv3d", seen)
        found = layer(x, before)
    torch.testing.assert_close(found, layer(x, before), atol=1e-5, rtol=0)
    assert set(shapes) == {8}
