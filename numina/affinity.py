"""Which tokens are one thing: coordinates whose products are self-attention's own scores.

A head scores two tokens of a clip by q·k/√D. Made symmetric, and less each frame's mean query and key, the scores of
all pairs are a matrix of rank 2D at most: S = (Q Kᵀ + K Qᵀ) / 2√D. Its largest eigenvectors, times the roots of their
eigenvalues, give every token a few coordinates with S ≈ Z Zᵀ (classical multidimensional scaling). Two tokens' cosine
says whether a head takes them for one thing, in the same frame or in different ones, and nothing of the size of the
number of tokens squared is ever formed.

Legend: F frames, n tokens of a frame, N heads, D head size, r coordinates. q and k are taken after norm and rotary
embedding. Ranks that hold different rows add their sums; no rows travel before the coordinates are there.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

COORDINATES = 6  # of a head; more add little: a clip has few things, and most of what is left is noise
AT_ONCE = 8  # heads whose centred rows are held
OVERSAMPLED = 6  # columns more in the search, which then needs few rounds
ROUNDS = 12  # of subspace iteration; the columns' products with S are exact to 1 % after 8 on all maps tried
CHOSEN = 4  # heads whose coordinates are kept, at most
WORTH = 0.6  # of the best head's d′, below which another one would blur it
KEPT = 12  # coordinates of the chosen heads together: what leaves a GPU is 0.8 MB of a clip at 480p
CORE, OUTSIDE = 0.55, 0.15  # shares of a noun's peak: surely on an instance, surely on none


def frame_sums(
    q: Float[Tensor, "rows heads dim"], k: Float[Tensor, "rows heads dim"], frame: Int[Tensor, " rows"], frames: int
) -> Float[Tensor, "frames heads both"]:
    """Sums of a frame's queries and keys, side by side, in float32; of the given rows alone."""
    both = torch.cat([q, k], dim=2).float()
    return torch.zeros(frames, *both.shape[1:], device=q.device).index_add_(0, frame, both)


def centred(
    q: Float[Tensor, "rows heads dim"],
    k: Float[Tensor, "rows heads dim"],
    frame: Int[Tensor, " rows"],
    means: Float[Tensor, "frames heads both"],
) -> Float[Tensor, "heads rows both"]:
    """Queries and keys less their frame's means: what all tokens of a frame share tells none apart."""
    return (torch.cat([q, k], dim=2).float() - means[frame]).transpose(0, 1)


def gram(rows: Float[Tensor, "heads rows both"]) -> Float[Tensor, "heads both both"]:
    """Products of the centred columns, in float64 from float32 products; ranks add theirs."""
    return (rows.mT @ rows).double()


def coordinates(
    rows: Float[Tensor, "heads rows both"], gram: Float[Tensor, "heads both both"], number: int = COORDINATES
) -> Float[Tensor, "heads rows r"]:
    """The rows' coordinates, given the Gram matrix of all rows of the clip: the same whatever rows a rank holds."""
    return rows @ _weights(gram, number)


def clip_coordinates(
    q: Float[Tensor, "rows heads dim"],
    k: Float[Tensor, "rows heads dim"],
    frame: Int[Tensor, " rows"],
    tokens: tuple[int, int],
    add: Callable[[Tensor], Tensor],
) -> Float16[Tensor, "heads rows r"]:
    """Every head's coordinates of a rank's rows, of a clip of so many frames and tokens a frame; ``add`` sums over
    ranks. Some heads at a time: the centred rows of 40 in float32 are 1.3 GB at 480p, and more while they are made.
    """
    frames, size = tokens
    parts = [slice(first, first + AT_ONCE) for first in range(0, q.shape[1], AT_ONCE)]
    sums = [frame_sums(q[:, own], k[:, own], frame, frames) for own in parts]
    means = add(torch.cat(sums, dim=1)) / size

    def rows(own: slice) -> Float[Tensor, "some rows both"]:
        return centred(q[:, own], k[:, own], frame, means[:, own])

    weights = _weights(add(torch.cat([gram(rows(own)) for own in parts])), COORDINATES)
    return torch.cat([(rows(own) @ weights[own]).half() for own in parts])


def _weights(gram: Float[Tensor, "heads both both"], number: int) -> Float[Tensor, "heads both r"]:
    """What brings centred rows to their coordinates, given the Gram matrix of all of them.

    Subspace iteration on S in the space of the columns of M = [Q K], S = M B Mᵀ with B = (0 I; I 0)/2√D: c ← B G c,
    made orthonormal in the inner product of G = Mᵀ M, then Rayleigh–Ritz. Coordinates of eigenvalues ≤ 0 are 0. Those
    of a head with values that aren't finite are NaN: the clip is broken, and who reads it says so.
    """
    heads, width, _ = gram.shape
    finite = gram.isfinite().all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    gram = torch.where(finite, gram, torch.eye(width, dtype=gram.dtype, device=gram.device))
    half = width // 2
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)[:, None, None]
    eye = torch.eye(width, dtype=torch.float64, device=gram.device)
    inner = gram / scale + 1e-9 * eye
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(width, number + OVERSAMPLED, dtype=torch.float64, generator=generator).to(gram.device)
    columns = columns.expand(heads, -1, -1)
    for _ in range(ROUNDS):
        columns = _orthonormal(_swapped(inner @ columns, half), inner)
    small = columns.mT @ inner @ _swapped(inner @ columns, half)
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    values, vectors = values.flip(1)[:, :number], vectors.flip(2)[:, :, :number]
    weights = columns @ (vectors * values.clamp_min(0.0).sqrt()[:, None]) / (2 * math.sqrt(half)) ** 0.5
    largest = weights.gather(1, weights.abs().argmax(dim=1, keepdim=True))
    weights = weights * torch.where(largest < 0, -1.0, 1.0)  # an eigenvector's sign is free: all ranks take the same
    return torch.where(finite, weights, torch.nan).float()


def _swapped(columns: Float[Tensor, "heads both r"], half: int) -> Float[Tensor, "heads both r"]:
    return columns.roll(half, dims=1)


def _orthonormal(
    columns: Float[Tensor, "heads both r"], inner: Float[Tensor, "heads both both"]
) -> Float[Tensor, "heads both r"]:
    """Columns with cᵀ G c = 1; what depends on others comes out small, never NaN."""
    columns = columns / columns.norm(dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(2):
        small = columns.mT @ inner @ columns
        least = 1e-12 * small.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-30
        factor = torch.linalg.cholesky_ex(small + least * torch.eye(small.shape[1], device=small.device)).L
        columns = torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT
    return columns


def separation(
    tokens: Float[Tensor, "heads frames H W r"], responses: Float[Tensor, "nouns frames H W"]
) -> Float[Tensor, " heads"]:
    """How well each head's cosines tell things apart, beyond knowing that neighbours are near.

    Pairs of tokens on one instance, with nothing but it in between, are compared with two other kinds: pairs at the
    same offset of which one is on an instance and the other on none, which a head that knows places alone can't tell
    apart; and pairs on two instances with a gap in between, which a head that knows the noun alone can't. Each
    difference of mean cosines is taken in standard deviations (d′, as in signal detection), and the lower one counts; 0
    where a clip has no such pairs. ``responses`` are above their ground (`numina.fused.responses`), in any unit.
    """
    peaks = responses.flatten(2).topk(min(2, responses[0, 0].numel()), dim=2).values.mean(dim=2).median(dim=1).values
    responses = responses / peaks.clamp_min(1e-12)[:, None, None, None]
    unit = (tokens / tokens.norm(dim=-1, keepdim=True).clamp_min(1e-12)).movedim(-1, 1)  # [N, r, F, H, W]
    top = responses.amax(dim=0)
    cores, outside = responses >= CORE, top <= OUTSIDE
    near = max(2, round(3 * math.sqrt(top.shape[1] * top.shape[2] / 1560)))
    same, edge, apart = list[_Pairs](), list[_Pairs](), list[_Pairs]()
    for distance in (near, 2 * near, 3 * near, 5 * near):
        for down, right in ((0, 1), (1, 1), (1, 0), (1, -1)):
            offset = down * distance, right * distance
            if offset[0] >= top.shape[1] or abs(offset[1]) >= top.shape[2]:
                continue
            steps = [(down * step, right * step) for step in range(distance + 1)]
            low = torch.stack([_window(top, offset, step) for step in steps]).amin(dim=0)
            first, second = (_window(cores, offset, step) for step in (steps[0], steps[-1]))
            left, beyond = (_window(outside, offset, step) for step in (steps[0], steps[-1]))
            cosine = (_window(unit, offset, steps[0]) * _window(unit, offset, steps[-1])).sum(dim=1)
            both = (first & second).any(dim=0)
            if distance == near:
                same.append((both & (low >= CORE), cosine))
                edge.append(((first.any(dim=0) & beyond) | (second.any(dim=0) & left), cosine))
            apart.append((both & (low <= 2 * OUTSIDE), cosine))
    one, spread, pairs = _moments(same)
    lower = torch.full_like(one, torch.inf)
    for other, others, number in map(_moments, (edge, apart)):
        d = (one - other) / (spread + others).div(2).clamp_min(1e-6).sqrt()
        lower = torch.minimum(lower, torch.where((pairs > 0) & (number > 0), d, torch.inf))
    return torch.where(lower.isinf(), 0.0, lower)


def _window(x: Tensor, offset: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """Maps [..., H, W] so moved by a step that what lies a step further is where it began, of all tokens that have
    another one at the offset."""
    (down, right), (height, width) = offset, x.shape[-2:]
    start = step[0], step[1] + max(0, -right)
    return x[..., start[0] : start[0] + height - down, start[1] : start[1] + width - abs(right)]


_Pairs = tuple[Tensor, Tensor]  # which pairs [frames, …] are meant, and all pairs' cosines [heads, frames, …]


def _moments(pairs: list[_Pairs]) -> tuple[Float[Tensor, " heads"], Float[Tensor, " heads"], Int[Tensor, ""]]:
    """Mean and variance per head of the cosines of the meant pairs, and how many these are."""
    number = torch.stack([meant.sum() for meant, _ in pairs]).sum()
    share = number.clamp_min(1)
    mean = torch.stack([(cosine * meant).sum(dim=(1, 2, 3)) for meant, cosine in pairs]).sum(dim=0) / share
    square = torch.stack([(cosine.square() * meant).sum(dim=(1, 2, 3)) for meant, cosine in pairs]).sum(dim=0) / share
    return mean, square - mean.square(), number


def chosen_coordinates(
    tokens: Float[Tensor, "heads frames H W r"], responses: Float[Tensor, "nouns frames H W"], number: int = CHOSEN
) -> tuple[Float[Tensor, "frames H W s"], Int[Tensor, " chosen"], Float[Tensor, " heads"]]:
    """Coordinates of the heads that tell things apart best, side by side; which heads these are, and all heads' d′.

    Each head's are scaled to a mean square length of 1 over the clip, so that the products add up as equals, and
    turned to the principal axes of all, of which the first ``KEPT`` stay.
    """
    tokens = tokens.float()
    scores = separation(tokens, responses)
    best = scores.argsort(descending=True, stable=True)[:number]
    kept = tokens[best]
    scale = kept.square().sum(dim=-1).mean(dim=(1, 2, 3)).sqrt().clamp_min(1e-12)
    worth = (scores[best] >= WORTH * scores[best[:1]]) / scale
    flat = (kept * worth[:, None, None, None, None]).movedim(0, -2).flatten(-2)
    products = (flat.flatten(0, 2).mT @ flat.flatten(0, 2)).double().nan_to_num(0.0, 0.0, 0.0)
    axes = torch.linalg.eigh(products)[1].flip(1)[:, :KEPT]
    return flat @ axes.float(), best, scores
