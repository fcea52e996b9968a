"""GroundingDINO's two costly layers as they run fastest, with transformers' weights.

Attention to a few places of all maps (Deformable DETR, arXiv 2010.04159): transformers samples every place first, 16
times as many values as there are queries, and then stacks, weights and adds them. Here one kernel reads, weights and
adds a place at once. Places are float32 whatever the model's dtype: half precision can't tell a tenth of a token at the
far end of a map.

Attention between a frame and its caption, both ways: there are a thousand times as many tokens of the frame, so what
can be multiplied with a caption's few tokens is, and no token of the frame is made wider.

Legend: b frames, s tokens of all maps, q queries, n heads of d channels, l maps, p places a head looks at on each, t
tokens of a caption, c channels of the model.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipelines.private.transformers import give_places, grounding_dino_layers

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of PyTorch for a CPU come without
    triton = None

Size = tuple[int, int]  # height and width of a map
ROWS = 32  # queries of one program of the kernel


def fast_layers(model: nn.Module) -> None:
    """Changes a GroundingDinoForObjectDetection in place: these layers, and that places are float32.

    Afterwards frames must fill the tensor that they come in: no mask says which pixels are none.
    """
    for kind, own in (
        ("MultiscaleDeformableAttention", DeformableAttention),
        ("BiMultiHeadAttention", CaptionAttention),
    ):
        for parent, name, layer in grounding_dino_layers(model, kind):
            setattr(parent, name, own(layer))
    give_places(model, proposals)


class CaptionAttention(nn.Module):
    """Of a frame's tokens to its caption's and of these to the frame's, by the same scores."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.heads, self.scale = layer.num_heads, layer.scale
        self.vision, self.text = layer.vision_proj, layer.text_proj
        self.vision_value, self.text_value = layer.values_vision_proj, layer.values_text_proj
        self.vision_output, self.text_output = layer.out_vision_proj, layer.out_text_proj

    def forward(
        self,
        vision_features: Float[Tensor, "b s c"],
        text_features: Float[Tensor, "b t c"],
        vision_attention_mask: Any = None,
        text_attention_mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[tuple[Float[Tensor, "b s c"], None], tuple[Float[Tensor, "b t c"], None]]:
        key, value = (part(text_features).unflatten(-1, (self.heads, -1)) for part in (self.text, self.text_value))
        query = self.vision.weight.unflatten(0, (self.heads, -1))  # [n, d, c]
        columns = torch.einsum("btnd,ndc->bcnt", key * self.scale, query)
        shift = torch.einsum("btnd,nd->bnt", key * self.scale, self.vision.bias.unflatten(0, (self.heads, -1)))
        scores = (vision_features @ columns.flatten(2)).unflatten(-1, shift.shape[1:]).float() + shift[:, None]

        written = scores
        if text_attention_mask is not None:
            written = scores.masked_fill(text_attention_mask[:, None, None], -torch.inf)
        rows = torch.einsum("btnd,cnd->bntc", value, self.vision_output.weight.unflatten(1, (self.heads, -1)))
        to_vision = written.softmax(-1).to(rows.dtype).flatten(2) @ rows.flatten(1, 2) + self.vision_output.bias

        read = scores.softmax(1).to(vision_features.dtype).flatten(2).mT @ vision_features  # [b, n·t, c]
        wide = torch.einsum(
            "bntc,ndc->btnd",
            read.unflatten(1, shift.shape[1:]),
            self.vision_value.weight.unflatten(0, (self.heads, -1)),
        )
        to_text = self.text_output(wide.flatten(2) + self.vision_value.bias)
        return (to_vision, None), (to_text, None)


class DeformableAttention(nn.Module):
    """In the place of transformers' layer, with its weights."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.heads, self.maps, self.places = layer.n_heads, layer.n_levels, layer.n_points
        self.offsets, self.weights = layer.sampling_offsets, layer.attention_weights
        self.value, self.output = layer.value_proj, layer.output_proj

    def forward(
        self,
        hidden_states: Float[Tensor, "b q c"],
        *,
        encoder_hidden_states: Float[Tensor, "b s c"],
        reference_points: Float[Tensor, "b q l at"],
        spatial_shapes_list: Sequence[Size],
        position_embeddings: Float[Tensor, "b q c"] | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "b q c"], None]:
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        b, q, _channels = hidden_states.shape
        per_head = (b, q, self.heads, self.maps, self.places)
        found = attend(
            self.value(encoder_hidden_states).unflatten(-1, (self.heads, -1)),
            self.offsets(hidden_states).view(*per_head, 2),
            self.weights(hidden_states).view(per_head),
            reference_points,
            spatial_shapes_list,
        )
        return self.output(found), None


def attend(
    value: Float[Tensor, "b s n d"],
    offsets: Float[Tensor, "b q n l p 2"],
    logits: Float[Tensor, "b q n l p"],
    reference: Float[Tensor, "b q l at"],
    sizes: Sequence[Size],
) -> Float[Tensor, "b q channels"]:
    """The softmax-weighted mean of a head's places, read between four tokens of a map; beyond a map there are zeros.

    Args:
        offsets: x and y from the reference. In tokens where `reference` is a point (at = 2: x, y in shares of a map);
            where it is a box (at = 4: and its width and height), an offset of p leads from its middle to its border.
        sizes: of the maps; their tokens lie row by row, one map behind the other.
    """
    if triton is not None and value.is_cuda:
        return _launch(value, offsets, logits, reference, sizes)
    b, q, n, levels, p = logits.shape
    d = value.shape[-1]
    weights = nnf.softmax(logits.float().flatten(-2), dim=-1).view(b, q, n, levels, p)
    found = value.new_zeros((b * n, d, q), dtype=torch.float32)
    for i, (size, tokens) in enumerate(zip(sizes, value.split([h * w for h, w in sizes], dim=1), strict=True)):
        maps = tokens.float().permute(0, 2, 3, 1).reshape(b * n, d, *size)
        at = reference[:, :, None, i, None].float()
        scale = at[..., 2:] / (2 * p) if at.shape[-1] == 4 else 1 / at.new_tensor([size[1], size[0]])
        places = at[..., :2] + offsets[:, :, :, i].float() * scale  # [b, q, n, p, 2]
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        read = nnf.grid_sample(maps, grid, align_corners=False)
        found += (read * weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return found.view(b, n * d, q).transpose(1, 2).to(value.dtype)


def _launch(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The same by the kernel."""
    (b, q, n, levels, p), d = logits.shape, value.shape[-1]
    value, offsets, logits = value.contiguous(), offsets.contiguous(), logits.contiguous()
    reference = reference.float().expand(b, q, levels, -1).contiguous()
    out = value.new_empty((b, q, n * d))
    maps = _maps(tuple((int(height), int(width)) for height, width in sizes), value.device)
    _kernel[(triton.cdiv(q, ROWS), b * n)](
        value, offsets, logits, reference, maps, out, value.shape[1], q,
        n, d, triton.next_power_of_2(d), levels, p, reference.shape[-1], ROWS, num_warps=4,
    )  # fmt: skip
    return out


@cache
def _maps(sizes: tuple[Size, ...], device: torch.device) -> Int[Tensor, "l 3"]:
    """Height, width and first token of each map."""
    first, found = 0, []
    for height, width in sizes:
        found.append((height, width, first))
        first += height * width
    return torch.tensor(found, dtype=torch.int32, device=device)


def proposals(sizes: Sequence[Size], device: torch.device) -> tuple[Float[Tensor, "1 s 4"], Bool[Tensor, "1 s 1"]]:
    """A box around every token, as logits of its middle and size in shares of the frame, and whether it counts.

    Sides are 0.05 on the first map and double from one to the next. One near the frame's edge doesn't count.
    """
    boxes = []
    for i, (height, width) in enumerate(sizes):
        y, x = (torch.arange(length, device=device, dtype=torch.float32) for length in (height, width))
        middle = torch.stack(torch.meshgrid((x + 0.5) / width, (y + 0.5) / height, indexing="xy"), dim=-1)
        boxes.append(torch.cat([middle, torch.full_like(middle, 0.05 * 2.0**i)], dim=-1).flatten(0, 1))
    found = torch.cat(boxes)[None]
    inside = ((found > 0.01) & (found < 0.99)).all(-1, keepdim=True)
    return found.logit().masked_fill(~inside, float("inf")), inside


if triton is not None:

    @triton.jit
    def _kernel(
        value, offsets, logits, reference, maps, out, S, Q,
        N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, L: tl.constexpr, P: tl.constexpr, AT: tl.constexpr,
        ROWS: tl.constexpr,
    ):  # fmt: skip
        query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        frame, head = (tl.program_id(1) // N).to(tl.int64), tl.program_id(1) % N
        inside = query < Q
        channel = tl.arange(0, WIDTH)[None, :]
        row = frame * Q + query
        first = (row * N + head) * L * P
        most = tl.full((ROWS,), float("-inf"), tl.float32)
        for i in tl.static_range(L * P):
            most = tl.maximum(most, tl.load(logits + first + i, mask=inside, other=0.0).to(tl.float32))
        total = tl.zeros((ROWS,), tl.float32)
        found = tl.zeros((ROWS, WIDTH), tl.float32)
        for level in tl.static_range(L):
            height, width = tl.load(maps + 3 * level), tl.load(maps + 3 * level + 1)
            tokens = value + ((frame * S + tl.load(maps + 3 * level + 2)) * N + head) * D
            at = reference + (row * L + level) * AT
            across = tl.load(at, mask=inside, other=0.0) * width - 0.5
            down = tl.load(at + 1, mask=inside, other=0.0) * height - 0.5
            if AT == 4:
                stretch_x = tl.load(at + 2, mask=inside, other=0.0) * width / (2 * P)
                stretch_y = tl.load(at + 3, mask=inside, other=0.0) * height / (2 * P)
            for place in tl.static_range(P):
                i = level * P + place
                weight = tl.exp(tl.load(logits + first + i, mask=inside, other=0.0).to(tl.float32) - most)
                total += weight
                x = tl.load(offsets + (first + i) * 2, mask=inside, other=0.0).to(tl.float32)
                y = tl.load(offsets + (first + i) * 2 + 1, mask=inside, other=0.0).to(tl.float32)
                if AT == 4:
                    x, y = x * stretch_x, y * stretch_y
                # Far outside, whole numbers would overflow: as far as it takes to read zeros is far enough.
                x = tl.minimum(tl.maximum(across + x, -2.0), width + 1.0)
                y = tl.minimum(tl.maximum(down + y, -2.0), height + 1.0)
                left, top = tl.floor(x), tl.floor(y)
                for corner in tl.static_range(4):
                    column, line = left + corner % 2, top + corner // 2
                    share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - line)) * weight
                    there = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height)
                    token = line.to(tl.int32) * width + column.to(tl.int32)
                    read = tl.load(
                        tokens + token[:, None] * (N * D) + channel,
                        mask=there[:, None] & (channel < D), other=0.0,
                    )  # fmt: skip
                    found += share[:, None] * read.to(tl.float32)
        found = found / total[:, None]
        at = out + (row * N + head)[:, None] * D + channel
        tl.store(at, found.to(out.dtype.element_ty), mask=inside[:, None] & (channel < D))
