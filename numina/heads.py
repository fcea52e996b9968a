"""Which attention heads see the instances, and what is kept of them (arXiv 2604.08546 §3.2).

Legend: F frames, N heads, H W the token grid of a frame, n = H·W, D head size. q and k are taken after norm and rotary
embedding. Everything here works on the conditional pass and only reads: it never changes what a block computes.

All heads of all frames are worked on together, in chunks whose temporaries fit a given memory, or a CPU's caches;
nothing here waits for the GPU. Scores and softmax are float32, of exact products where q and k are in half precision.
On a GPU such a map, once centred, is kept in float16 and multiplied on tensor cores, summed in float32; what that moves
in an image is far less than the rounding of q and k does. On a CPU, and of float32 q and k, all is float32, as exact as
the process lets it be (TF32 is off unless it turned it on).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from numina.config import IdentifyConfig

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of the three components seen as a colour image
NO_HEAD = -1  # the head "chosen" where all heads are averaged

# Of the block Krylov space in which principal components are sought; chosen with tests/benchmarks/capture_cost.py.
BLOCK = 16  # columns of the start block
DEGREE = 5  # times that the map and its transpose are applied to it
SMOOTH = 12  # columns of the start block that are low spatial frequencies; the others are random
# On a CPU, chosen with tests/benchmarks/heads.py.
EARLY = 3  # degree at which most maps' axes have settled
SETTLED = 3e-4  # bound on the sine of the angle between an axis and the exact one
CACHED = 2 << 20  # bytes of maps, or of one map's rows, that are worked on together

# A centred map in float16 is held this many times: its largest element, below 1, still fits, and the smallest has room.
HALF_SCALE = 2.0**15
HALF_ROUNDING = 1e-4  # of the first component's range: what float16's rounding may leave of one that isn't there


def frame_attention(
    q: Float[Tensor, "maps tokens dim"], k: Float[Tensor, "maps tokens dim"]
) -> Float[Tensor, "maps tokens tokens"]:
    """Softmax maps of frames' tokens among themselves, softmax(q kᵀ/√D), in float32; a map is one head of one frame."""
    return torch.softmax(_scores(q, k), dim=-1)


def _scores(
    q: Float[Tensor, "maps rows dim"], k: Float[Tensor, "maps columns dim"]
) -> Float[Tensor, "maps rows columns"]:
    """q kᵀ/√D in float32, from products that aren't rounded where q and k are in half precision."""
    root = q.shape[-1] ** 0.5
    if not q.is_cuda or q.dtype == torch.float32:
        return (q.float() / root) @ k.float().mT
    scores = torch.empty(*q.shape[:2], k.shape[1], dtype=torch.float32, device=q.device)
    return torch.baddbmm(scores, q, k.mT, out_dtype=torch.float32, beta=0, alpha=1 / root, out=scores)


def _product(
    a: Float[Tensor, "maps rows inner"], b: Float[Tensor, "maps inner columns"]
) -> Float[Tensor, "maps rows columns"]:
    """a b, summed in float32; b is taken in the precision of a."""
    if a.dtype == torch.float32:
        return a @ b.float()
    if not a.is_cuda:  # in tests alone
        return a.float() @ b.to(a.dtype).float()
    return torch.bmm(a, b.to(a.dtype), out_dtype=torch.float32)


def score_heads(
    q: Float[Tensor, "frames heads tokens dim"],
    k: Float[Tensor, "frames heads tokens dim"],
    grid: tuple[int, int],
    config: IdentifyConfig,
    *,
    memory: int = 3 << 29,
) -> tuple[Float[Tensor, "frames heads"], Float[Tensor, "frames heads H W 3"]]:
    """How well each head of each frame separates instances, S = α·S1 + β·S2 + γ·S3, and its image.

    Attention is over a frame's own tokens; the frames may be those of several clips. The image has the first three
    principal components of the map's rows, each scaled to [0, 1] with its largest coordinate > 0; the frame's head is
    the argmax of the scores. A component isn't determined, and may come out otherwise on another device, where its
    variance nearly equals the next one's (singular values closer than about 1 %), or its sign where its largest and
    smallest coordinates are equal in size. A map that isn't finite gives NaN as score and image, without an error and
    for its own frame and head alone: an argmax takes it, so it shows.

    ``memory`` bounds the bytes of temporaries beside the results; one map at least is worked on at a time.
    """
    heads, tokens, dim = q.shape[1:]
    maps = torch.arange(q.shape[0] * heads, device=q.device)
    start = _start_block(grid).to(q.device, non_blocking=True)
    half = q.is_cuda and q.dtype != torch.float32 and not _small(tokens)
    at_once = max(1, memory // 8 // _attention_bytes(tokens, dim))
    size = max(1, (memory - at_once * _attention_bytes(tokens, dim)) // _map_bytes(tokens, half))
    if not q.is_cuda:
        size = min(size, max(1, CACHED // (4 * tokens**2)))
    components = torch.cat(
        [
            _principal_components(*_centred_maps(q, k, some // heads, some % heads, at_once, half), start)
            for some in maps.split(size)
        ]
    ).unflatten(1, grid)
    red, green, blue = components.unbind(-1)
    grey = GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue
    contrast = grey.flatten(1).std(dim=1, correction=0)
    scores = (
        config.contrast_weight * contrast
        + config.structure_weight * _block_variance(grey, config.structure_blocks)
        + config.edge_weight * _edge_strength(grey)
    )
    return scores.unflatten(0, q.shape[:2]), components.unflatten(0, q.shape[:2])


def _attention_bytes(tokens: int, dim: int) -> int:
    """Bytes of temporaries that one map takes until it is centred: scores and map, q and k."""
    return 8 * tokens**2 + 12 * tokens * dim


def _small(tokens: int) -> bool:
    """Whether a map is solved in full, and nothing is gained by less precision."""
    return tokens <= BLOCK * (DEGREE + 1)


def _map_bytes(tokens: int, half: bool) -> int:
    """Bytes of temporaries that one centred map takes: itself, the Krylov space, its Gram matrices."""
    width = min(tokens, BLOCK * (DEGREE + 1))
    element = 2 if half else 4
    exact = 8 * tokens * width if tokens == width else 0  # a small map is copied to float64 whole
    return element * tokens**2 + exact + tokens * (24 * width + 48 * BLOCK) + 48 * width**2


def _centred_maps(
    q: Float[Tensor, "frames heads n dim"],
    k: Float[Tensor, "frames heads n dim"],
    frame: Int[Tensor, " maps"],
    head: Int[Tensor, " maps"],
    at_once: int,
    half: bool,
) -> tuple[Float[Tensor, "maps n n"], Float[Tensor, "maps 1 1"]]:
    """Maps less the mean of their rows, in float32 or, ``half``, `HALF_SCALE` times in float16, and their noise.

    Centred before anything is rounded and not in each product: rounding is then relative to what is left, which may be
    little. Of rows that are all alike float32 leaves noise in proportion to their mean.
    """
    n = q.shape[2]
    scale = HALF_SCALE if half else 1.0
    if at_once >= len(frame) and not half:
        attention = frame_attention(q[frame, head], k[frame, head])
        mean = attention.mean(dim=1, keepdim=True)
        return attention.sub_(mean), 1e-5 * mean.amax(dim=2, keepdim=True)
    centred = torch.empty(len(frame), n, n, dtype=torch.float16 if half else torch.float32, device=q.device)
    means = torch.empty(len(frame), 1, n, dtype=torch.float32, device=q.device)
    for first in range(0, len(frame), at_once):
        some = slice(first, first + at_once)
        attention = frame_attention(q[frame[some], head[some]], k[frame[some], head[some]])
        torch.mean(attention, dim=1, keepdim=True, out=means[some])
        torch.add(-scale * means[some], attention, alpha=scale, out=centred[some])
    return centred, 1e-5 * scale * means.amax(dim=2, keepdim=True)


def _principal_components(
    centred: Float[Tensor, "maps n n"], noise: Float[Tensor, "maps 1 1"], start: Float[Tensor, "n block"]
) -> Float[Tensor, "maps n 3"]:
    """Coordinates of centred maps' rows on their first three principal axes, each scaled to [0, 1].

    The sign, free in a PCA, is fixed: a component's largest coordinate is > 0. A component of rounding noise alone
    would be blown up to a full-range image: it is shown flat instead.
    """
    components = _coordinates(centred, start)
    extreme = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, extreme).sign()
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    spread = high - low
    if centred.dtype == torch.float16:
        noise = torch.maximum(noise, HALF_ROUNDING * spread[..., :1])
    return torch.where(spread <= noise, 0.0, (components - low) / spread).float()


def _coordinates(centred: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]) -> Float[Tensor, "maps n 3"]:
    """B·axes in float64: the axes are sought in the block Krylov space of Q = start, BᵀB·start, …, (BᵀB)^DEGREE·start.

    They are the leading eigenvectors of (B Q)ᵀ(B Q), were Q orthonormal, the best that so many products with B can give
    (Rayleigh–Ritz; Musco and Musco, arXiv 1504.05477). Small maps are solved in full.
    """
    if _small(centred.shape[1]):
        rows = centred.double()
        return rows @ _leading_axes(rows.mT @ rows)
    if centred.is_cuda or centred.dtype == torch.float16:
        return _full_coordinates(centred, start)
    return _settled_coordinates(centred, start)


def _full_coordinates(centred: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]) -> Float[Tensor, "maps n 3"]:
    """B·axes from the whole Krylov space, without waiting for any number."""
    basis, images = (x.double() for x in _krylov(centred, start))
    straight = _orthonormaliser(basis, 1e-4)  # nearly orthonormal isn't enough where variances are close
    return images @ (straight @ _leading_axes(straight.mT @ (images.mT @ images) @ straight))


def _settled_coordinates(
    centred: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]
) -> Float[Tensor, "maps n 3"]:
    """B·axes on a CPU, which may look at a number: the space grows to `DEGREE` only where axes haven't settled by
    `EARLY`.

    An axis v of variance λ is near an exact one where |BᵀB v − λ v| is small against the gap to the next variance
    (Davis and Kahan's sin θ). Within the space that residual is 0; what leads out of it, the next block has.
    """
    coordinates = torch.empty(*centred.shape[:2], 3, dtype=torch.float64)
    left = torch.arange(len(centred))
    basis = images = centred[..., :0]
    block = start.expand(len(centred), -1, -1)
    for degree in range(DEGREE + 1):
        for _ in range(2 if degree else 1):
            block = torch.linalg.qr(block - basis @ (basis.mT @ block))[0]
        basis = torch.cat([basis, block], dim=2)
        image, block = _there_and_back(centred, block)
        images = torch.cat([images, image], dim=2)
        if degree not in (EARLY, DEGREE):
            continue
        wide = images.double()
        # LAPACK refuses what isn't finite. The image of such a map is no number all the same.
        variances, axes = torch.linalg.eigh((wide.mT @ wide).nan_to_num(0.0, 0.0, 0.0))
        variances, axes = variances[:, -4:].flip(1), axes[..., -3:].flip(2)
        coordinates[left] = wide @ axes
        out = block @ axes[:, -BLOCK:].float()
        out = out - basis @ (basis.mT @ out)
        gaps = variances[:, :3] - variances[:, 1:]
        gaps = torch.minimum(gaps, nnf.pad(gaps[:, :2], (1, 0), value=math.inf))
        open_ = (out.square().sum(dim=1) > (SETTLED * gaps).square()).any(dim=1)
        if not open_.any():
            break
        if not open_.all():
            left, centred, basis, images, block = (x[open_] for x in (left, centred, basis, images, block))
    return coordinates


def _there_and_back(
    centred: Float[Tensor, "maps n n"], block: Float[Tensor, "maps n block"]
) -> tuple[Float[Tensor, "maps n block"], Float[Tensor, "maps n block"]]:
    """B·block and BᵀB·block, some rows of B after the other: they are still in the caches when they are needed again.

    The second product reads B along its rows, too: half as long again the other way.
    """
    image, back = torch.empty_like(block), torch.zeros_like(block.mT)
    rows = max(BLOCK, CACHED // (4 * centred.shape[0] * centred.shape[1]))
    for part, own in zip(centred.split(rows, dim=1), image.split(rows, dim=1), strict=True):
        own.copy_(part @ block)
        back += own.mT @ part
    return image, back.mT


def _start_block(grid: tuple[int, int]) -> Float[Tensor, "n block"]:
    """The same columns on every device and rank: the grid's lowest frequencies, and noise to miss nothing.

    What heads see is smooth over the frame, so the low frequencies save about one degree in five.
    """
    height, width = grid
    lowest = sorted((((a / height) ** 2 + (b / width) ** 2), a, b) for a in range(height) for b in range(width))
    down, across = (torch.arange(side, dtype=torch.float64) + 0.5 for side in grid)
    waves = [
        (math.pi * a / height * down).cos()[:, None] * (math.pi * b / width * across).cos()
        for _, a, b in lowest[1 : SMOOTH + 1]  # a map's rows sum to 1: centred, it takes the constant to 0
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BLOCK - len(waves), height, width, dtype=torch.float64, generator=generator)
    return torch.stack([*waves, *noise]).flatten(1).T.float()


def _krylov(
    centred: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]
) -> tuple[Float[Tensor, "maps n space"], Float[Tensor, "maps n space"]]:
    """A basis Q of the Krylov space, orthonormal up to rounding, in the precision of B; and B Q in float32."""
    maps, n, _ = centred.shape
    basis = centred.new_empty(maps, n, BLOCK * (DEGREE + 1))
    images = torch.empty_like(basis, dtype=torch.float32)
    block = start.expand(maps, -1, -1)
    for first in range(0, basis.shape[2], BLOCK):
        here = slice(first, first + BLOCK)
        if first:
            block = _product(centred.mT, _unit_columns(images[..., first - BLOCK : first]))
        basis[..., here] = _orthonormal(block, basis[..., :first])
        images[..., here] = _product(centred, basis[..., here])
    return basis, images


def _unit_columns(block: Float[Tensor, "maps n block"]) -> Float[Tensor, "maps n block"]:
    """Columns of length 1, within any precision's range. Zero stays zero."""
    return nnf.normalize(block, dim=1, eps=1e-30)


def _orthonormal(
    block: Float[Tensor, "maps n block"], earlier: Float[Tensor, "maps n space"]
) -> Float[Tensor, "maps n block"]:
    """Columns made orthonormal and orthogonal to earlier ones, nearly: what is left of it is made good in the end.

    Columns that are zero stay zero: the space of a map of low rank is exhausted.
    """
    block = _unit_columns(block)
    for _ in range(2 if earlier.shape[2] else 0):
        block = _unit_columns(block - _product(earlier, _product(earlier.mT, block)))
    wide = block.double()
    return (wide @ _orthonormaliser(wide, 1e-12)).float()


def _orthonormaliser(columns: Float[Tensor, "maps n space"], least: float) -> Float[Tensor, "maps space space"]:
    """What makes columns orthonormal, multiplied from the right: the inverse of the factor Lᵀ of their Gram matrix.

    Of columns in float64 that depend on each other what is left is scaled up by no more than `least`^-½.
    """
    gram = columns.mT @ columns
    eye = torch.eye(gram.shape[1], dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky_ex(gram + least * eye).L
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT


def _leading_axes(gram: Float[Tensor, "maps space space"]) -> Float[Tensor, "maps space 3"]:
    """The first three eigenvectors of Gram matrices in float64; zero or any, orthogonal, where there is nothing left.

    By repeated squaring, one vector after the other: a GPU's own solvers take such matrices one by one and make the
    host wait. After 12 squarings a vector holds (λ'/λ)^4,096 of the next one, whose eigenvalue is λ'.
    """
    axes = gram.new_zeros(*gram.shape[:2], 0)
    for _ in range(3):
        power = gram
        for step in range(13):
            power = power @ power if step else power
            if step % 4 == 0:  # a 16th power of what is from 1/space to 1 doesn't leave float64's range
                power = power / torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True).clamp_min(1e-100)
        column = power.diagonal(dim1=1, dim2=2).argmax(dim=1)[:, None, None]
        axis = power.gather(2, column.expand(-1, power.shape[1], 1))
        # What is left of a far larger eigenvalue is no smaller than rounding, and must not come out once more.
        axis = nnf.normalize(axis - axes @ (axes.mT @ axis), dim=1, eps=1e-100)
        axis = axis - axes @ (axes.mT @ axis)
        gram = gram - axis @ (axis.mT @ gram)
        gram = gram - (gram @ axis) @ axis.mT
        axes = torch.cat([axes, axis], dim=2)
    return axes


def _block_variance(grey: Float[Tensor, "maps H W"], blocks: int) -> Float[Tensor, " maps"]:
    """S2: variance of the sums of blocks of ⌊H/g⌋ × ⌊W/g⌋ tokens; the remainder is cropped."""
    height, width = max(1, grey.shape[1] // blocks), max(1, grey.shape[2] // blocks)
    sums = nnf.avg_pool2d(grey[:, None], (height, width)) * (height * width)
    return sums.flatten(1).var(dim=1, correction=0)


def _edge_strength(grey: Float[Tensor, "maps H W"]) -> Float[Tensor, " maps"]:
    """S3: mean Sobel magnitude; the border is repeated outwards, so that it isn't an edge itself.

    By shifted sums: a convolution may run in TF32 on a GPU.
    """
    padded = nnf.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return torch.hypot(down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]).mean(dim=(1, 2))


def cross_response(
    q: Float[Tensor, "rows heads dim"], k: Float[Tensor, "text heads dim"], token_sets: Sequence[Sequence[int]]
) -> Float[Tensor, "nouns heads rows"]:
    """How strongly each row looks at each noun: mean over the noun's tokens of softmax(q kᵀ/√D), in float32.

    The softmax runs over all text tokens, so the result of a row depends on that row alone: any shard of rows will do.
    It is attention to values that say which tokens are whose: any fused kernel computes it without forming a map, as
    precise as the inputs' dtype. There can be as many nouns as a head has channels.
    """
    values = torch.zeros(len(k), q.shape[2], dtype=q.dtype)  # as wide as a head: the quickest kernels ask for it
    for noun, tokens in enumerate(token_sets):
        values[list(tokens), noun] = 1.0
    values = values.to(q.device, non_blocking=True).expand(1, q.shape[1], -1, -1)
    shares = nnf.scaled_dot_product_attention(q.transpose(0, 1)[None], k.transpose(0, 1)[None], values)[0]
    sizes = torch.tensor([float(len(tokens)) for tokens in token_sets]).to(q.device, non_blocking=True)
    return shares[..., : len(token_sets)].movedim(2, 0).float() / sizes[:, None, None]


def score_deviation(
    q: Float[Tensor, "rows heads dim"],
    k: Float[Tensor, "text heads dim"],
    tokens: Sequence[int],
    *,
    memory: int = 1 << 30,
) -> Float[Tensor, "heads 3"]:
    """Count, sum and sum of squares of the scores q·k/√D per head, over the rows and the given tokens, in float64.

    Partial sums of ranks that hold different rows are added; ``deviation`` takes the total.
    """
    columns = _index(tokens, k.device)
    sums = q.new_zeros(q.shape[1], 3, dtype=torch.float64)
    for _, scores in _score_chunks(q, k.index_select(0, columns), memory):
        sums[:, 0] += scores[0].numel()
        sums[:, 1] += scores.sum((1, 2), dtype=torch.float64)
        sums[:, 2] += scores.square().sum((1, 2), dtype=torch.float64)
    return sums


def deviation(sums: Float[Tensor, "heads 3"]) -> Float[Tensor, ""]:
    """Standard deviation of the scores within heads: variance around each head's own mean, averaged over heads.

    The unit in which strengths fit models of any score range. NaN where nothing was counted.
    """
    count, total, squares = sums.unbind(dim=1)
    variance = squares / count - (total / count).square()
    return variance.clamp_min(0.0).mean().sqrt()


def _index(tokens: Sequence[int], device: torch.device) -> Int[Tensor, " tokens"]:
    """Token numbers as an index on the device, without waiting for it."""
    return torch.tensor(tokens, dtype=torch.int64).to(device, non_blocking=True)


def _score_chunks(
    q: Float[Tensor, "rows heads dim"], k: Float[Tensor, "text heads dim"], memory: int
) -> Iterator[tuple[slice, Float[Tensor, "heads chunk text"]]]:
    """Scores q·k/√D in float32, as many rows of all heads at a time as fit `memory` with one more copy beside them."""
    rows, heads, dim = q.shape
    keys = k.transpose(0, 1)
    size = max(1, memory // (heads * (8 * len(k) + 8 * dim)))
    for first in range(0, rows, size):
        chunk = slice(first, first + size)
        yield chunk, _scores(q[chunk].transpose(0, 1), keys)


def select_response(
    responses: Float[Tensor, "nouns heads frames H W"], mode: Literal["peak_frame", "peak_clip", "mean"]
) -> tuple[Float[Tensor, "nouns frames H W"], Int[Tensor, "nouns frames"]]:
    """One map per noun and frame: of the head with the highest peak (per frame or over the clip), or all heads' mean.

    Returns the maps and the heads they came from (``NO_HEAD`` for the mean). Of equal peaks the lowest head wins, so
    that every rank and device chooses alike.
    """
    if mode == "mean":
        return responses.mean(dim=1), responses.new_full(
            (len(responses), responses.shape[2]), NO_HEAD, dtype=torch.int64
        )
    peaks = responses.flatten(3).amax(dim=3)  # nouns heads frames
    if mode == "peak_clip":
        peaks = peaks.amax(dim=2, keepdim=True).expand_as(peaks)
    index = torch.arange(peaks.shape[1], device=peaks.device)[None, :, None]
    highest = peaks == peaks.amax(dim=1, keepdim=True)
    heads = torch.where(highest, index, peaks.shape[1]).amin(dim=1)  # argmax promises no order among equals
    maps = torch.take_along_dim(responses, heads[:, None, :, None, None], dim=1).squeeze(1)
    return maps, heads
