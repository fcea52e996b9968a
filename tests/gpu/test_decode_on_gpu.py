"""Decoding on a real GPU: kernels against the sums written out, and frames as near to float64 as diffusers' own.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipelines.models.registry import load_model
from pipelines.video import decode, kernels
from pipelines.video.decode import decode_pixels, split_decoder
from pipelines.video.layers import fast_layers
from tests.gpu.test_parallel_on_gpu import free_port, meet, part
from tests.pipelines.video.test_decode import Case, build, psnr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]


def pixels(*shape: int, stride: int = 0, dtype: torch.dtype) -> torch.Tensor:
    """[B, C, f, H, W] with channels last, of every `stride` values if they are more."""
    B, C, *rest = shape
    return torch.randn(B, *rest, max(C, stride), device="cuda", dtype=dtype)[..., :C].movedim(-1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 96, 3, 5, 7), (1, 384, 1, 4, 9), (1, 40, 2, 1, 1)])
@pytest.mark.parametrize("halo", [0, 1])
def test_kernels_are_the_sums_written_out(
    shape: tuple[int, ...], halo: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of frames and rows in a larger tensor, and of channels among filled ones; channels that are no power of 2."""
    assert kernels.triton is not None
    torch.manual_seed(0)
    B, C, f, H, W = shape
    x, other = pixels(*shape, stride=128, dtype=dtype), pixels(*shape, dtype=dtype)
    gamma, bias = torch.randn(2, C, device="cuda", dtype=dtype)
    larger = pixels(B, C, f + 2, H + 2 * halo, W, dtype=dtype)
    inside = larger[:, :, 2:, halo : halo + H]
    found, before = [], larger.clone()
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(kernels, "triton", None)
        kernels.norm_silu(x, gamma, bias, out=inside)
        found.append((inside.clone(), kernels.add_bias(x, bias, other).clone()))
        inside.copy_(before[:, :, 2:, halo : halo + H])
        assert torch.equal(larger, before), "frames before, or rows around, were written"
    atol = 1e-5 if dtype is torch.float32 else 0.04
    for one, written_out in zip(*found, strict=True):
        torch.testing.assert_close(one, written_out, atol=atol, rtol=1e-2)


@pytest.mark.parametrize("vae", ["tiny", "residual", "testbed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_are_as_exact_as_diffusers(vae: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean squared distance to float64 of a batch, with a first chunk and later ones; float32 to 100 dB at least, for
    kernels may add in any order, and half precision within 1.25 (CPU: 0.69 to 1.15)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    latents = Case(vae, clips=2, frames=3).latents(build(vae).config.z_dim).cuda()

    def frames(model_dtype: torch.dtype, fast: bool) -> torch.Tensor:
        own = build(vae).to("cuda", model_dtype)
        with torch.inference_mode(), fast_layers(own.decoder, on_gpu=fast):
            return torch.cat(list(decode._frames(own, latents.to(model_dtype))), dim=2).double()

    exact = frames(torch.float64, False)
    theirs, ours = ((frames(dtype, fast) - exact).square().mean() for fast in (False, True))
    assert ours < 1.25 * theirs + 1e-10


def test_the_embedded_model_decodes_in_half_precision() -> None:
    """As `generation.vae_dtype` asks: 45 dB at least from float32, on layers as a GPU runs them."""
    pixels = {}
    for vae_dtype in ("float32", "bfloat16"):
        model: Any = load_model("testbed", device="cuda", vae_dtype=vae_dtype)  # type: ignore[arg-type]
        assert model.vae_dtype == vae_dtype
        decoded = model.decode(Case(clips=2, frames=3).latents(model.vae.config.z_dim).cuda())
        assert decoded.finite.all()
        pixels[vae_dtype] = decoded.pixels
    assert 45 < psnr(pixels["float32"], pixels["bfloat16"]) < 70


def work(rank: int, port: int, folder: Path) -> None:
    meet(rank, port)
    torch.save(decode_all(dist.group.WORLD), folder / f"{rank}.pt")
    part()


def decode_all(group: Any = None) -> dict[tuple[str, torch.dtype], Any]:
    """Pixels of a batch with an uneven number of rows, by VAE and dtype; over a group or on one GPU."""
    found = {}
    for vae in ("tiny", "residual", "testbed"):
        for dtype in (torch.float32, torch.bfloat16):
            own = build(vae).to("cuda", dtype)
            if group is not None:
                split_decoder(own, group)
            latents = Case(vae, rows=9, clips=2, frames=3).latents(own.config.z_dim).cuda()
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                decoded = decode_pixels(own, latents)
            found[vae, dtype] = None if decoded is None else decoded.pixels
    return found


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_decode_what_one_decodes(tmp_path: Path) -> None:
    """Over NCCL, with bands of 5 and 4 rows: in float32 at most one byte of 200 is a grey level apart, and bfloat16 is
    as near to float32 as one GPU's."""
    mp.spawn(work, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(second.values()) == {None}
    alone = decode_all()
    for vae in ("tiny", "residual", "testbed"):
        exact, together = alone[vae, torch.float32], first[vae, torch.float32]
        apart = (together.int() - exact.int()).abs()
        print(f"{vae:8} float32: {int(apart.max())} apart at most, {int(apart.count_nonzero())} of {apart.numel()}")
        assert exact.float().std() > 20, "pixels that are all alike would prove nothing"
        assert apart.max() <= 1
        assert apart.count_nonzero() < apart.numel() / 200
        ours, usual = (psnr(pixels[vae, torch.bfloat16], exact) for pixels in (first, alone))
        print(f"{vae:8} bfloat16: {ours:.1f} dB from float32, one GPU's {usual:.1f}")
        assert ours > usual - 1.5
