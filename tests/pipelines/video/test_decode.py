"""Decoding spread over ranks: real processes with gloo give the pixels that one process gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan

from numina.errors import ModelError
from pipelines.models.registry import load_model
from pipelines.video import decode
from pipelines.video.bands import Band
from pipelines.video.decode import decode_pixels, split_decoder
from pipelines.video.layers import fast_layers
from tests.pipelines.ranks import processes

TINY = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
TINY |= {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]}
RESIDUAL = TINY | {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}  # as Wan2.2's
RESIDUAL |= {"decoder_base_dim": 6, "scale_factor_spatial": 16}


@dataclass(frozen=True)
class Case:
    vae: str = "tiny"
    rows: int = 8  # latent; 8 pixels each, 16 of the residual VAE
    clips: int = 1
    frames: int = 2  # latent: 4k - 3 of pixels
    dtype: torch.dtype = torch.float32
    on_gpu: bool = False  # whether by the layers that a GPU runs, written out for a CPU

    @property
    def vae_of(self) -> tuple[Any, ...]:
        return self.vae, self.dtype, self.on_gpu

    def latents(self, channels: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.rows)
        return torch.randn(self.clips, channels, self.frames, self.rows, 4, generator=generator)


SPLIT = {
    "even": Case(),
    "uneven": Case(rows=15),
    "thin": Case(rows=7),
    "one frame": Case(frames=1),
    "17 frames": Case(frames=5),
    "two clips": Case(clips=2, rows=9, frames=3),
    "residual": Case(vae="residual", rows=7, frames=3),
    "embedded": Case(vae="testbed", rows=10, frames=3),
    "half": Case(dtype=torch.bfloat16, rows=6),
}
SPLIT |= {
    f"{name}, a GPU's layers": replace(SPLIT[name], on_gpu=True)
    for name in ("thin", "one frame", "two clips", "residual", "half")
}
TOO_THIN = Case(rows=3)  # for 4 ranks; fewer can share it
RANKS = (2, 3, 4)
CASES = {**SPLIT, "too thin": TOO_THIN}
ALONE = ("uneven", "too thin")  # decoded by each rank with diffusers' own method too, after the split


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    if name == "testbed":
        model: Any = load_model("testbed", device="cpu")
        return model.pipeline.vae.to(dtype)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**(RESIDUAL if name == "residual" else TINY)).eval().requires_grad_(False)
    vae.decoder.conv_out.weight.mul_(3)  # the whole range of greys, some of it clamped
    return vae.to(dtype)


def reference(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' own decode: floats [B, 3, frames, height, width] and what they are as pixels."""
    latents = latents.to(vae.dtype)
    mean, std = (
        torch.tensor(values, dtype=vae.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    floats = vae.decode(latents * std + mean, return_dict=False)[0]
    pixels = ((floats.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return floats, pixels.permute(0, 2, 3, 4, 1)


def one_rank(vae: Any, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the layers that the ranks use."""
    floats, to_pixels = [], decode.to_pixels
    with pytest.MonkeyPatch.context() as patch, layers_of(case):
        patch.setattr(decode, "to_pixels", lambda frames: floats.append(frames) or to_pixels(frames))
        decoded = decode_pixels(vae, case.latents(vae.config.z_dim))
    assert decoded is not None
    return torch.cat(floats, dim=2).clamp(-1, 1), decoded.pixels


def work(rank: int, folder: Path) -> None:
    """All cases over the last 2, 3 and 4 of 4 ranks: a gang need not begin with the process group's first."""
    torch.set_num_threads(1)
    vaes = {case.vae_of: build(case.vae, case.dtype) for case in CASES.values()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    groups = {ranks: dist.new_group(list(range(4 - ranks, 4))) for ranks in RANKS}
    for ranks, group in groups.items():
        if rank >= 4 - ranks:
            found = decode_all(vaes, group)
            found["broken band"] = decode_with_a_broken_band(group)
            found |= {name: decode_with(group, lost) for name, lost in LOST.items()}
            torch.save(found, folder / f"{dist.get_rank(group)} of {ranks}.pt")
    dist.barrier()  # who leaves while others still talk to it may take them, or itself, down
    dist.destroy_process_group()


@contextmanager
def layers_of(case: Case) -> Iterator[None]:
    """Those that decoding uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            decode, "fast_layers", lambda decoder, **how: fast_layers(decoder, **how | {"on_gpu": case.on_gpu})
        )
        yield


def decode_all(vaes: dict[Any, Any], group: Any) -> dict[str, Any]:
    """All cases on one rank, each decoded twice in a row; the ranks but the first are given wrong latents."""
    rank = dist.get_rank(group)
    found: dict[str, Any] = {}
    for vae in 2 * list(vaes.values()):  # a second call changes nothing
        split_decoder(vae, group)
    for name, case in CASES.items():
        vae = vaes[case.vae_of]
        latents = case.latents(vae.config.z_dim) + rank
        bands: list[torch.Tensor] = []
        exchanges: list[int] = []
        with pytest.MonkeyPatch.context() as patch, layers_of(case):
            pixels_of, exchange = decode.to_pixels, dist.batch_isend_irecv
            patch.setattr(
                decode, "to_pixels", lambda frames, seen=bands, to=pixels_of: seen.append(frames) or to(frames)
            )
            patch.setattr(
                dist, "batch_isend_irecv", lambda ops, seen=exchanges, go=exchange: seen.append(len(ops)) or go(ops)
            )
            first, finite = decode_pixels(vae, latents) or (None, None)
            again = (decode_pixels(vae, latents) or (None,))[0]
        bands = bands[: len(bands) // 2]
        found[name] = {
            "pixels": first,
            "finite": finite,
            "again": again,
            "band": torch.cat(bands, dim=2).clamp(-1, 1) if bands else None,
            "exchanges": len(exchanges) / 2 / case.frames,
            "alone": reference(vae, latents) if name in ALONE else None,
        }
    return found


def decode_with(group: Any, lost: dict[str, Any]) -> dict[str, Any]:
    """One case, with methods of bands that don't do what they should."""
    vae = build("tiny")
    split_decoder(vae, group)
    with pytest.MonkeyPatch.context() as patch:
        for method, instead in lost.items():
            patch.setattr(Band, method, instead)
        pixels, finite = decode_pixels(vae, SPLIT["even"].latents(vae.config.z_dim)) or (None, None)
    return {"pixels": pixels, "finite": finite, "again": pixels}


def only_own(band: Band, own: torch.Tensor, dim: int, gathered: Any = Band.gathered, **where: Any) -> torch.Tensor:
    """Pixels of all ranks, but keys and values of one."""
    return gathered(band, own, dim, **where) if where else own


LOST = {"no gather": {"gathered": only_own}, "no neighbours": {"fill": lambda band, x: None}}  # zeros stay


def decode_with_a_broken_band(group: Any) -> dict[str, Any]:
    """The last rank's weights make a NaN of a colour: only its rows have any."""
    vae, case = build("tiny"), Case()
    if dist.get_rank(group) == dist.get_world_size(group) - 1:
        vae.decoder.conv_out.bias[0] = torch.nan
    split_decoder(vae, group)
    pixels, finite = decode_pixels(vae, case.latents(vae.config.z_dim)) or (None, None)
    return {"pixels": pixels, "finite": finite, "again": pixels}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    processes(work, 4, folder)
    return folder


@pytest.fixture(params=RANKS)
def together(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """What each of 2, 3 and 4 ranks found, by case."""
    ranks = request.param
    return [torch.load(folder / f"{rank} of {ranks}.pt", weights_only=False) for rank in range(ranks)]


@pytest.mark.parametrize("name", SPLIT)
def test_ranks_decode_what_one_process_decodes(together: list[dict[str, Any]], name: str) -> None:
    """The first rank's latents, decoded: floats within 4e-5, and fewer than one byte of 1,000 is a grey level apart.

    Twice in a row, whatever was decoded between. bfloat16 rounds at every layer, so a few grey levels may differ.
    """
    case, half = SPLIT[name], SPLIT[name].dtype == torch.bfloat16
    floats, pixels = one_rank(build(case.vae, case.dtype), case)
    found = [rank[name] for rank in together]
    assert pixels.float().std() > 20, "pixels that are all alike would prove nothing"

    bands = [own["band"] for own in found]
    scale = floats.shape[-2] // case.rows
    assert {len(band.shape) for band in bands} == {5}
    assert max(band.shape[-2] for band in bands) == scale * -(-case.rows // len(together))  # nobody decodes more
    torch.testing.assert_close(torch.cat(bands, dim=-2), floats, atol=0.05 if half else 4e-5, rtol=0)

    first = found[0]["pixels"]
    assert (first.shape, first.dtype, first.device.type) == (pixels.shape, torch.uint8, "cpu")
    apart = (first.int() - pixels.int()).abs()
    assert apart.max() <= (6 if half else 1)
    assert half or apart.count_nonzero() < apart.numel() / 1000
    assert torch.equal(found[0]["again"], first)


@pytest.mark.parametrize("name", LOST)
def test_what_bands_lose_would_be_seen(together: list[dict[str, Any]], name: str) -> None:
    """Ranks that attend to their own rows alone, or lack the rows next to theirs, give other pixels."""
    _, pixels = one_rank(build("tiny"), SPLIT["even"])
    apart = (together[0][name]["pixels"].int() - pixels.int()).abs()
    assert apart.max() > 20
    assert apart.count_nonzero() > apart.numel() / 10


def test_a_row_is_exchanged_once(together: list[dict[str, Any]]) -> None:
    """For each latent frame once per convolution over rows but the first, once for attention, once for the pixels."""
    for name, case in SPLIT.items():
        convolutions = [layer for layer in build(case.vae).decoder.modules() if hasattr(layer, "kernel_size")]
        over_rows = sum(layer.kernel_size[-2] > 1 for layer in convolutions)
        for rank, found in enumerate(together):
            assert found[name]["exchanges"] == (over_rows - 1) + 1 + 1, f"rank {rank}, {name}"


def test_the_first_rank_knows_of_numbers_that_others_lack(together: list[dict[str, Any]]) -> None:
    """NaNs in another rank's rows are told to the first, whose own are fine; in bytes nobody would see them."""
    for name, case in SPLIT.items():
        assert together[0][name]["finite"].tolist() == [True] * case.clips
    own = together[0]["broken band"]
    assert own["pixels"][:, :, : 8 * 4].float().std() > 20
    assert own["finite"].tolist() == [False]


def test_numbers_that_are_none_are_told_by_clip() -> None:
    """One NaN in one clip's latents: that clip's pixels aren't numbers, the others' are."""
    vae = build("tiny")
    latents = Case(clips=3).latents(vae.config.z_dim)
    latents[1, 0, 1, 2, 3] = torch.nan
    decoded = decode_pixels(vae, latents)
    assert decoded is not None
    assert decoded.finite.tolist() == [True, False, True]


def test_only_the_first_rank_has_pixels(together: list[dict[str, Any]]) -> None:
    """The others return None, split or not."""
    for rank, found in enumerate(together):
        for name, own in found.items():
            assert (own["pixels"] is None) == (own["again"] is None) == (rank > 0), f"rank {rank}, {name}"


def test_rows_too_few_for_the_ranks_are_decoded_whole(together: list[dict[str, Any]]) -> None:
    """3 latent rows over 4 ranks: the first decodes them alone, to the bit, and the others nothing; fewer share."""
    bands = [found["too thin"]["band"] for found in together]
    if len(together) < 4:
        assert [band.shape[-2] for band in bands] == ([16, 8] if len(together) == 2 else [8, 8, 8])
    else:
        assert [band is None for band in bands] == [False, True, True, True]
        assert bands[0].shape[-2] == 24
        own = together[0]["too thin"]
        assert torch.equal(own["pixels"], own["alone"][1])


@pytest.mark.parametrize("name", ALONE)
def test_a_split_vae_still_decodes_alone(together: list[dict[str, Any]], name: str) -> None:
    """`vae.decode` of a rank is what it was before the split and waits for nobody."""
    vae = build(CASES[name].vae)
    latents = CASES[name].latents(vae.config.z_dim)
    for rank, found in enumerate(together):
        torch.testing.assert_close(found[name]["alone"][0], reference(vae, latents + rank)[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("vae", ["tiny", "residual", "testbed"])
def test_one_process_decodes_as_diffusers_does(vae: str) -> None:
    """Bit-equal pixels, of a batch and of a single frame, in float32 and in bfloat16."""
    for case in (Case(vae, clips=2, frames=3), Case(vae, frames=1), Case(vae, rows=2, dtype=torch.bfloat16)):
        own = build(vae, case.dtype)
        latents = case.latents(own.config.z_dim)
        kept = latents.clone()
        decoded = decode_pixels(own, latents)
        assert decoded is not None
        assert torch.equal(decoded.pixels, reference(own, latents)[1])
        assert decoded.finite.all()
        assert torch.equal(latents, kept)


def test_half_precision_is_near_float32() -> None:
    """The embedded model's VAE: 45 dB at least between the two, seen 49.4; and not the same."""
    latents = Case(clips=2, frames=3).latents(build("testbed").config.z_dim)
    exact, half = (decode_pixels(build("testbed", dtype), latents) for dtype in (torch.float32, torch.bfloat16))
    assert exact is not None
    assert half is not None
    assert 45 < psnr(exact.pixels, half.pixels) < 70


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """[dB] of bytes."""
    return float(10 * torch.log10(255**2 / (one.float() - other.float()).square().mean()))


def test_a_foreign_decoder_is_refused() -> None:
    """Another VAE than Wan's is an error that says so, before anything is changed."""
    with pytest.raises(ModelError, match="Linear can't be split over ranks"):
        split_decoder(torch.nn.Linear(1, 1), None)
