"""From latents to pixels: on one rank alone, or on all ranks of a gang, each with a band of rows of every frame.

    first rank's latents ─► broadcast ─► each rank: its rows ─► the decoder's layers ─► uint8 rows ─► first rank, CPU

Split, a convolution gets the rows next to its band from the neighbours and attention those of all ranks (`bands.py`,
`layers.py`), so the ranks give together what one gives. A latent frame at a time is decoded, made bytes, sent and
forgotten: no rank ever holds the clip as floats.

Names: B clips, C latent channels, F latent frames, f frames that one latent frame becomes, h w latent rows and columns,
H W pixel rows and columns.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from numina.errors import ModelError
from pipelines.base import Decoded
from pipelines.video.bands import Band
from pipelines.video.layers import fast_layers

_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by the VAE whose decode is split over them


def split_decoder(vae: Any, group: Any) -> None:
    """From here on `decode_pixels` spreads this VAE's decode over a process group. All its ranks call, after loading.

    `vae.decode` stays one rank's own. A group of one leaves all as it is; another call replaces the group.

    Raises ModelError for another VAE than Wan's.
    """
    if not isinstance(vae, AutoencoderKLWan):
        raise ModelError(f"the decoder of a {type(vae).__name__} can't be split over ranks; decode it on one")
    _GROUPS.pop(vae, None)
    if dist.get_world_size(group) > 1:
        _GROUPS[vae] = group


@torch.inference_mode()
def decode_pixels(vae: Any, latents: Tensor) -> Decoded | None:
    """An AutoencoderKLWan's pixels of normalised latents [B, C, F, h, w].

    With a split decoder every rank of the group calls at the same time, with latents of one shape: the first rank's are
    decoded, and it alone gets pixels, the others None. Where latent rows are too few for the ranks (a band would be
    thinner than a convolution's reach) the first rank decodes the whole, and the others don't wait.
    """
    group, band = _GROUPS.get(vae), None
    if group is not None:
        band = Band.of(group, latents.shape[-2])
        if band is None and dist.get_rank(group) > 0:
            return None
    latents = _denormalised(vae, latents)
    if band is not None:  # ranks need not agree on the last bits of a clip's latents; its rows are to come from one
        dist.broadcast(latents, group=group, group_src=0)
    finite = torch.ones(latents.shape[0], dtype=torch.uint8, device=latents.device)  # of this rank's rows

    def as_bytes(frames: Tensor) -> Tensor:
        finite.mul_(all_finite(frames))
        pixels = to_pixels(frames)
        return pixels if band is None else band.gathered(pixels, dim=2, leader_only=True)

    with fast_layers(vae.decoder, on_gpu=vae.device.type == "cuda", band=band):
        pieces = map(as_bytes, _frames(vae, latents, band))
        if band is None or band.rank == 0:
            pixels = _on_cpu(pieces, vae.device)
        else:
            for _ in pieces:  # decoded, sent and forgotten
                pass
    if band is not None:
        dist.reduce(finite, op=dist.ReduceOp.MIN, group=group, group_dst=0)
        if band.rank > 0:
            return None
    return Decoded(pixels, finite.bool().cpu())


def _denormalised(vae: Any, latents: Tensor) -> Tensor:
    """A new tensor, in the VAE's own scale, dtype and place."""
    latents = latents.to(vae.device, vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * std + mean


def _frames(vae: Any, latents: Tensor, band: Band | None = None) -> Iterator[Tensor]:
    """`AutoencoderKLWan.decode` without its clamp, a latent frame at a time: [B, 3, f, H, W], of all rows or a band."""
    latents = vae.post_quant_conv(latents)
    if band is not None:
        latents = band.cut(latents)
    # What each causal convolution keeps of the frames before.
    cache = [None] * sum(isinstance(layer, WanCausalConv3d) for layer in vae.decoder.modules())
    for i in range(latents.shape[2]):
        frames = vae.decoder(latents[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
        yield frames if vae.config.patch_size is None else unpatchify(frames, vae.config.patch_size)


def all_finite(frames: Tensor) -> Tensor:
    """For each clip of [B, …] whether all of its values are finite: bool [B]."""
    return frames.isfinite().flatten(1).all(1)


def to_pixels(frames: Tensor) -> Tensor:
    """[B, 3, f, H, W] of -1 to 1 → uint8 [B, f, H, W, 3]."""
    pixels = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()


def _on_cpu(frames: Iterator[Tensor], device: torch.device) -> Tensor:
    """Pieces of clips [B, f, H, W, 3] as one, on the CPU; the device goes on decoding while a piece is copied."""
    pieces = [piece.to("cpu", non_blocking=True) for piece in frames]
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return torch.cat(pieces, dim=1)
