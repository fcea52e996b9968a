"""From latents to pixels: on one rank alone, or on all ranks of a gang, each with a band of rows of every frame.

    first rank's latents ─► broadcast ─► each rank: its rows ─► split decoder ─► uint8 rows ─► first rank, CPU

Split, a convolution gets the rows next to its band from the neighbours and attention gathers all rows (distvae), so the
ranks give together what one gives. A latent frame at a time is decoded, made bytes, sent and forgotten: no rank ever
holds the clip as floats.

Names: B clips, C latent channels, F latent frames, f frames that one latent frame becomes, h w latent rows and columns,
H W pixel rows and columns.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from numina.errors import ModelError
from pipelines.base import Decoded
from pipelines.video.layers import fast_layers


@dataclass(frozen=True)
class _Split:
    """A decoder that takes this rank's rows of a latent frame and gives its rows of the frames."""

    decoder: Any
    group: Any
    rank: int  # in the group; 0 collects the pixels
    ranks: int
    halo: int  # rows that its widest convolution needs of a neighbour

    def fits(self, rows: int) -> bool:
        """Whether even the thinnest band has the rows that its neighbours need; the same answer on every rank."""
        return rows // self.ranks >= max(1, self.halo)

    def forget_halos(self) -> None:
        """Frees what distvae received neighbours' rows in: it keeps a buffer per convolution and shape, for good."""
        for layer in self.decoder.modules():
            getattr(layer, "halo_buffer", {}).clear()


_SPLITS: WeakKeyDictionary[Any, _Split] = WeakKeyDictionary()  # by the VAE they belong to


def split_decoder(vae: Any, group: Any) -> None:
    """From here on `decode_pixels` spreads this VAE's decode over a process group. All its ranks call, after loading.

    The split decoder is a second skeleton around the same weights: `vae.decode` stays one rank's own. A group of one
    leaves all as it is; another call replaces the group.

    Raises ModelError when distvae can't split this VAE's decoder.
    """
    # Not at the top: one rank alone never needs it.
    from distvae.modules.adapters.vae.decoder_adapters import WanDecoderAdapter
    from distvae.vae import decoder_adapter_name

    if decoder_adapter_name(vae) != WanDecoderAdapter.__name__:
        raise ModelError(f"the decoder of a {type(vae).__name__} can't be split over ranks; decode it on one")
    _SPLITS.pop(vae, None)
    if dist.get_world_size(group) == 1:
        return
    weights = {id(tensor): tensor for tensor in (*vae.decoder.parameters(), *vae.decoder.buffers())}
    decoder = WanDecoderAdapter(deepcopy(vae.decoder, weights), vae_group=group)
    halo = decoder.patchify.halo
    # Rows are cut here, where Wan2.2's odd numbers of them are fine too, and collected as bytes by one rank, not as
    # floats by all.
    decoder.depatchify = torch.nn.Identity()
    _SPLITS[vae] = _Split(decoder, group, dist.get_rank(group), dist.get_world_size(group), halo)


@torch.inference_mode()
def decode_pixels(vae: Any, latents: Tensor) -> Decoded | None:
    """An AutoencoderKLWan's pixels of normalised latents [B, C, F, h, w].

    With a split decoder every rank of the group calls at the same time, with latents of one shape: the first rank's are
    decoded, and it alone gets pixels, the others None. Where latent rows are too few for the ranks (a band would be
    thinner than a convolution's reach) the first rank decodes the whole, and the others don't wait.
    """
    latents = _denormalised(vae, latents)
    finite = torch.ones(latents.shape[0], dtype=torch.uint8, device=latents.device)  # of this rank's rows

    def as_bytes(frames: Tensor) -> Tensor:
        finite.mul_(all_finite(frames))
        return to_pixels(frames)

    split = _SPLITS.get(vae)
    if split is None or not split.fits(latents.shape[-2]):
        if split is not None and split.rank > 0:
            return None
        with fast_layers(vae.decoder, on_gpu=vae.device.type == "cuda"):
            pixels = _on_cpu(map(as_bytes, _frames(vae, vae.decoder, latents)), vae.device)
        return Decoded(pixels, finite.bool().cpu())
    # Ranks need not agree on the last bits of a clip's latents; its rows are to come from one of them.
    dist.broadcast(latents, group=split.group, group_src=0)
    bands = latents.tensor_split(split.ranks, dim=-2)
    rows = [band.shape[-2] for band in bands]
    own = _frames(vae, partial(split.decoder, patchify=False), bands[split.rank].contiguous())
    frames = (_collected(pixels, rows, split) for pixels in map(as_bytes, own))
    if split.rank == 0:
        clips = _on_cpu(frames, vae.device)
    else:
        clips = None
        for _ in frames:  # decoded, sent and forgotten
            pass
    split.forget_halos()
    dist.reduce(finite, op=dist.ReduceOp.MIN, group=split.group, group_dst=0)
    return None if clips is None else Decoded(clips, finite.bool().cpu())


def _denormalised(vae: Any, latents: Tensor) -> Tensor:
    """A new tensor, in the VAE's own scale, dtype and place."""
    latents = latents.to(vae.device, vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * std + mean


def _frames(vae: Any, decoder: Any, latents: Tensor) -> Iterator[Tensor]:
    """`AutoencoderKLWan.decode` without its clamp, a latent frame at a time: [B, 3, f, H, W], of all rows or a band."""
    latents = vae.post_quant_conv(latents)
    # What each causal convolution keeps of the frames before. `vae.decoder` tells their number: a split one has others.
    cache = [None] * sum(isinstance(layer, WanCausalConv3d) for layer in vae.decoder.modules())
    for i in range(latents.shape[2]):
        frames = decoder(latents[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
        yield frames if vae.config.patch_size is None else unpatchify(frames, vae.config.patch_size)


def all_finite(frames: Tensor) -> Tensor:
    """For each clip of [B, …] whether all of its values are finite: bool [B]."""
    return frames.isfinite().flatten(1).all(1)


def to_pixels(frames: Tensor) -> Tensor:
    """[B, 3, f, H, W] of -1 to 1 → uint8 [B, f, H, W, 3]."""
    pixels = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()


def _collected(own: Tensor, rows: list[int], split: _Split) -> Tensor:
    """All ranks' bands of some frames joined on the first rank; on the others, just their own, sent.

    One batch of sends and receives, as halos are exchanged: NCCL then uses the group's communicator, and bands of
    different heights need no padding.
    """
    if split.rank > 0:
        bands, ops = [own], [dist.P2POp(dist.isend, own, group=split.group, group_peer=0)]
    else:
        B, f, height, W, channels = own.shape
        scale = height // rows[0]
        bands = [own, *(own.new_empty(B, f, scale * count, W, channels) for count in rows[1:])]
        ops = [
            dist.P2POp(dist.irecv, band, group=split.group, group_peer=rank) for rank, band in enumerate(bands[1:], 1)
        ]
    for transfer in dist.batch_isend_irecv(ops):
        transfer.wait()
    return torch.cat(bands, dim=2)


def _on_cpu(frames: Iterator[Tensor], device: torch.device) -> Tensor:
    """Pieces of clips [B, f, H, W, 3] as one, on the CPU; the device goes on decoding while a piece is copied."""
    pieces = [piece.to("cpu", non_blocking=True) for piece in frames]
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return torch.cat(pieces, dim=1)
