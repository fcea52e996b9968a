"""A decoder's layers as a GPU runs them, on a CPU: the same but for rounding."""

from collections.abc import Iterator

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

from pipelines.video.decode import _frames
from pipelines.video.layers import fast_layers
from tests.pipelines.video.test_decode import Case, build


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """No compiler is needed: fused or not, the sums are those."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("vae", ["tiny", "residual", "testbed"])
def test_a_gpus_layers_give_the_same_frames(vae: str) -> None:
    """A batch of several latent frames, so with a first chunk and later ones: float32 to 2e-5; bfloat16 has steps."""
    for dtype, apart in ((torch.float32, 2e-5), (torch.bfloat16, 0.1)):
        own = build(vae, dtype)
        latents = Case(vae, clips=2, frames=3).latents(own.config.z_dim).to(dtype)
        with torch.inference_mode():
            plain = list(_frames(own, own.decoder, latents))
            with fast_layers(own.decoder, on_gpu=True):
                fast = list(_frames(own, own.decoder, latents))
            after = list(_frames(own, own.decoder, latents))
        for one, other, again in zip(plain, fast, after, strict=True):
            torch.testing.assert_close(other, one, atol=apart, rtol=0)
            torch.testing.assert_close(again, one, atol=apart, rtol=0)  # by weights in another order of memory
        assert torch.cat(plain, dim=2).float().std() > 0.05, "frames that are all alike would prove nothing"


def test_no_activation_is_lost_or_done_twice() -> None:
    """Norms that none follows, those of attention, stay diffusers' own."""
    decoder = build("tiny").decoder
    with fast_layers(decoder, on_gpu=True):
        norms = {name for name, layer in decoder.named_modules() if type(layer) is WanRMS_norm}
        changed = {name for name, layer in decoder.named_modules() if "forward" in vars(layer)}
        silent = {name for name in norms - changed if "attentions" not in name}
    assert not silent
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
