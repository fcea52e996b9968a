"""Coordinates are the best that so many can be, whatever rows a rank holds; heads are chosen for what they tell."""

import pytest
import torch

from numina import affinity
from numina.fused.responses import normalised
from tests.numina.fused.read import captured
from tests.numina.fused.troubles import FRAMES, HEIGHT, WIDTH, clip, clips

THINGS, NOUNS, PLACES, NOTHING = range(4)  # what the heads of a synthetic clip know


def random_rows(frames: int = 3, tokens: int = 20, heads: int = 2, dim: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    weights = 2.0 ** -torch.arange(dim)  # scores of a model fall off, too
    q, k = (weights * torch.randn(frames * tokens, heads, dim, generator=generator) for _ in range(2))
    return q, k, torch.arange(frames).repeat_interleave(tokens)


def test_products_are_the_scores_best_approximation() -> None:
    """Against the eigenvectors of the whole matrix of symmetric, centred scores."""
    q, k, frame = random_rows()
    rows = affinity.centred(q, k, frame, affinity.frame_sums(q, k, frame, 3) / 20)
    found = affinity.coordinates(rows, affinity.gram(rows)).double()
    for head in range(2):
        queries, keys = rows[head].double().chunk(2, dim=1)
        scores = (queries @ keys.T + keys @ queries.T) / 2 / 8**0.5
        values, vectors = torch.linalg.eigh(scores)
        best = vectors[:, -affinity.COORDINATES :] * values[-affinity.COORDINATES :].clamp_min(0).sqrt()
        torch.testing.assert_close(found[head] @ found[head].T, best @ best.T, atol=1e-2, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_head_says_so(value: float) -> None:
    """Values that aren't finite make a head's coordinates NaN, and no other's; what is made of all of them is NaN."""
    q, k, frame = random_rows()
    whole = affinity.coordinates(rows := affinity.centred(q, k, frame, torch.zeros(3, 2, 16)), affinity.gram(rows))
    q[7, 1, 3] = value
    found = affinity.coordinates(rows := affinity.centred(q, k, frame, torch.zeros(3, 2, 16)), affinity.gram(rows))
    torch.testing.assert_close(found[0], whole[0])
    assert found[1].isnan().all()
    kept, _, _ = affinity.chosen_coordinates(found.unflatten(1, (3, 4, 5)), torch.rand(1, 3, 4, 5))
    assert kept.isnan().all()


def test_heads_may_be_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of heads is held at once, and whatever is left over, every head's coordinates are its own."""
    q, k, frame = random_rows(heads=5)
    whole = affinity.clip_coordinates(q, k, frame, (3, 20), lambda sums: sums)
    for at_once in (1, 2, 5):
        monkeypatch.setattr(affinity, "AT_ONCE", at_once)
        found = affinity.clip_coordinates(q, k, frame, (3, 20), lambda sums: sums)
        torch.testing.assert_close(found, whole, atol=2e-3, rtol=0)
    for head in range(5):
        own = affinity.clip_coordinates(q[:, head : head + 1], k[:, head : head + 1], frame, (3, 20), lambda sums: sums)
        torch.testing.assert_close(own[0], whole[head], atol=2e-3, rtol=0)


def test_ranks_find_the_same_coordinates() -> None:
    """Sums over parts of the rows, added, give every part its rows of the whole."""
    q, k, frame = random_rows()
    parts = [slice(0, 25), slice(25, 60)]
    sums = [affinity.frame_sums(q[own], k[own], frame[own], 3) for own in parts]
    rows = [affinity.centred(q[own], k[own], frame[own], sum(sums) / 20) for own in parts]
    total = sum(affinity.gram(own) for own in rows)
    whole = affinity.centred(q, k, frame, affinity.frame_sums(q, k, frame, 3) / 20)
    found = torch.cat([affinity.coordinates(own, total) for own in rows], dim=1)
    expected = affinity.coordinates(whole, affinity.gram(whole))
    torch.testing.assert_close(found @ found.mT, expected @ expected.mT, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["control", "parts", "dim", "sink", "leak", "sizes"])
def test_the_head_that_knows_things_is_chosen(kind: str) -> None:
    """Not those that know only nouns, places or nothing: they are worth less than the best one's share."""
    own = next(own for own in clips(kind, "mild", 20) if max(own.counts) > 1)  # else nouns are things
    frame = torch.arange(FRAMES).repeat_interleave(HEIGHT * WIDTH)
    q, k = torch.from_numpy(own.q), torch.from_numpy(own.k)
    rows = affinity.centred(q, k, frame, affinity.frame_sums(q, k, frame, FRAMES) / (HEIGHT * WIDTH))
    tokens = affinity.coordinates(rows, affinity.gram(rows)).unflatten(1, (FRAMES, HEIGHT, WIDTH))
    kept, best, scores = affinity.chosen_coordinates(tokens, normalised(torch.from_numpy(own.blocks))[0])
    assert best[0] == THINGS
    assert (scores[[PLACES, NOTHING]] < affinity.WORTH * scores[THINGS]).all()
    assert kept.shape == (FRAMES, HEIGHT, WIDTH, affinity.KEPT)


def test_a_capture_is_small() -> None:
    """Below 1 MB for 21 frames of 480p and two nouns: all that leaves the GPU."""
    capture = captured(clip("control", "mild", 0))
    assert capture.coordinates is not None
    assert (capture.coordinates.nbytes + capture.responses.nbytes) * 21 / FRAMES < 1e6


def test_nothing_to_compare_scores_zero() -> None:
    """A clip without any response: every head is as good as another."""
    tokens = torch.randn(3, 2, 6, 6, affinity.COORDINATES)
    assert (affinity.separation(tokens, torch.zeros(1, 2, 6, 6)) == 0).all()
    kept, _, _ = affinity.chosen_coordinates(tokens, torch.zeros(1, 2, 6, 6))
    assert torch.isfinite(kept).all()
