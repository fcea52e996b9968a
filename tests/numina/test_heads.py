import numpy as np
import pytest
import torch
from scipy import ndimage

from numina.config import IdentifyConfig, MethodConfig
from numina.heads import (
    NO_HEAD,
    _block_variance,
    _centred_maps,
    _edge_strength,
    _full_coordinates,
    _settled_coordinates,
    _start_block,
    cross_response,
    deviation,
    frame_attention,
    score_deviation,
    score_heads,
    select_response,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def oracle_head(
    attention: np.ndarray, grid: tuple[int, int], config: IdentifyConfig
) -> tuple[float, np.ndarray, np.ndarray]:
    """Score, image and singular values of one head by a plain float64 SVD, block loop and scipy's Sobel filter."""
    rows = attention.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(rows)
    components = u[:, :3] * s[:3]
    for c in range(3):
        components[:, c] *= np.sign(components[np.abs(components[:, c]).argmax(), c])
        components[:, c] -= components[:, c].min()
        components[:, c] /= components[:, c].max()
    image = components.reshape(*grid, 3)
    grey = image @ np.array([0.299, 0.587, 0.114])
    h, w = (max(1, side // config.structure_blocks) for side in grid)
    sums = [
        grey[i : i + h, j : j + w].sum() for i in range(0, grid[0] - h + 1, h) for j in range(0, grid[1] - w + 1, w)
    ]
    edges = np.hypot(ndimage.sobel(grey, 0, mode="nearest"), ndimage.sobel(grey, 1, mode="nearest"))
    score = (
        config.contrast_weight * grey.std() + config.structure_weight * np.var(sums) + config.edge_weight * edges.mean()
    )
    return score, image, s


def pair_for(attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of one frame, [1, heads, n, n], whose softmax maps are the given ones [heads, n, n]."""
    n = attention.shape[-1]
    return attention.log()[None] * n**0.5, torch.eye(n).expand(1, *attention.shape)


def planted(frames: int, heads: int, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k [F, N, n, 32] of heads that see three blobs ever more clearly, and positions."""
    generator = torch.Generator().manual_seed(5)
    down, across = torch.meshgrid(*(torch.arange(side) / side for side in grid), indexing="ij")
    label = torch.zeros(frames, *grid, dtype=torch.int64)
    for frame in range(frames):
        for blob, (y, x) in enumerate(torch.rand(3, 2, generator=generator)):
            label[frame][(down - y) ** 2 + (across - x) ** 2 < 0.02] = blob + 1
    seen = torch.randn(4, 32, generator=generator)[label.flatten(1)][:, None]
    place = torch.stack([down.flatten(), across.flatten()], dim=1) @ (4 * torch.randn(2, 32, generator=generator))
    clear = torch.linspace(0.2, 1.0, heads)[:, None, None]
    q, k = clear * seen + 0.5 * place.cos() + 0.3 * torch.randn(2, frames, heads, *place.shape, generator=generator)
    return q, k


@pytest.mark.parametrize("grid", [(8, 8), (9, 13), (5, 7)])
def test_scores_and_images_equal_a_float64_svd(grid, generator):
    """Scores and components are those of the plain definition, also where the grid doesn't divide into blocks."""
    n = grid[0] * grid[1]
    q, k = torch.randn(2, 2, 3, n, 16, generator=generator)
    config = IdentifyConfig(structure_blocks=3, edge_weight=0.3)
    scores, components = score_heads(q, k, grid, config)
    for frame in range(2):
        attention = frame_attention(q[frame], k[frame])
        for head in range(3):
            score, image, _ = oracle_head(attention[head].numpy(), grid, config)
            np.testing.assert_allclose(components[frame, head].numpy(), image, atol=2e-5)
            assert scores[frame, head].item() == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(16, 16), (15, 26), (20, 26)])
def test_large_frames_choose_the_heads_of_a_float64_svd(grid, dtype):
    """Where a frame is too large for the full solution: the same heads, and images within 1e-3 where determined."""
    q, k = (x.to(dtype) for x in planted(2, 3, grid))
    config = IdentifyConfig()
    scores, components = score_heads(q, k, grid, config)
    for frame in range(2):
        attention = frame_attention(q[frame], k[frame]).numpy()
        exact = [oracle_head(attention[head], grid, config) for head in range(3)]
        assert scores[frame].argmax() == np.argmax([score for score, _, _ in exact])
        for head, (score, image, sigma) in enumerate(exact):
            assert scores[frame, head].item() == pytest.approx(score, rel=1e-3)
            if (sigma[1:4] < 0.99 * sigma[:3]).all():
                np.testing.assert_allclose(components[frame, head].numpy(), image, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("grid", [(16, 16), (15, 26)])
def test_the_ways_of_a_gpu_and_of_a_cpu_give_one_image(grid, half):
    """The whole Krylov space in float32, as on a GPU, or with maps in half precision, gives what a CPU stops at."""
    q, k = (x.bfloat16() for x in planted(2, 3, grid))
    frame, head = torch.arange(6) // 3, torch.arange(6) % 3
    start = _start_block(grid)
    whole = _full_coordinates(_centred_maps(q, k, frame, head, 2, half)[0], start)
    stopped = _settled_coordinates(_centred_maps(q, k, frame, head, 6, False)[0], start)
    for one, other in zip(whole.unbind(), stopped.unbind(), strict=True):
        one, other = (x / x.gather(0, x.abs().argmax(dim=0, keepdim=True)) for x in (one, other))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_chunks_and_strides_change_nothing():
    """However little memory is given, and however the rows lie in memory, the result is the same."""
    grid = (12, 12)
    q, k = planted(3, 2, grid)
    scores, components = score_heads(q, k, grid, IdentifyConfig())
    rows_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    for memory in (1, 5_000_000):
        again, images = score_heads(*rows_first, grid, IdentifyConfig(), memory=memory)
        torch.testing.assert_close(again, scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(images, components, atol=1e-4, rtol=1e-4)


def test_a_head_that_sees_objects_beats_a_uniform_one():
    """Two blobs that attend to themselves score above a head that attends everywhere alike, whose score is 0."""
    grid = (8, 8)
    blobs = torch.zeros(grid)
    blobs[1:3, 1:3], blobs[5:7, 4:7] = 1, 2
    same = (blobs.flatten()[:, None] == blobs.flatten()).float() + 1e-12
    attention = torch.stack([torch.full((64, 64), 1 / 64), same / same.sum(dim=1, keepdim=True)])
    scores, components = score_heads(*pair_for(attention), grid, IdentifyConfig())
    assert scores[0, 0] == 0.0
    assert components[0, 0].abs().max() == 0.0
    assert scores.argmax() == 1
    assert components[0, 1].amax() == 1.0
    assert components[0, 1].amin() == 0.0


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (8, 8), (20, 20)])
def test_equal_attention_is_a_flat_image(grid):
    """A frame whose tokens are all alike, or that has one token only, scores 0 in every head."""
    q = torch.ones(2, 3, grid[0] * grid[1], 8)
    scores, components = score_heads(q, q, grid, IdentifyConfig())
    assert scores.abs().max() == 0.0
    assert components.abs().max() == 0.0


@pytest.mark.parametrize("grid", [(8, 8), (16, 16)])
def test_float32_noise_is_no_image(grid, generator):
    """A map that is uniform up to rounding gives a flat image, not rounding noise at full range."""
    n = grid[0] * grid[1]
    attention = torch.full((1, n, n), 1 / n) * (1 + 1e-7 * torch.randn(1, n, n, generator=generator))
    assert score_heads(*pair_for(attention), grid, IdentifyConfig())[0].item() == 0.0


def test_components_that_a_map_lacks_are_flat():
    """Two kinds of rows make one component; the others are flat, not noise."""
    grid = (16, 16)
    half = (torch.arange(256) % 16 < 8).float()
    attention = 0.1 + (half[:, None] == half).float()
    _, components = score_heads(*pair_for(attention[None] / attention.sum(1)), grid, IdentifyConfig())
    assert components[0, 0, ..., 0].std() > 0.4
    assert components[0, 0, ..., 1:].abs().max() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_tokens_of_few_kinds_have_few_components(kinds, dtype):
    """k kinds of queries make k - 1 components, whatever the precision that the maps are held in; the rest is flat."""
    generator = torch.Generator().manual_seed(kinds)
    kind = torch.randint(0, kinds, (256,), generator=generator)
    q = torch.randn(kinds, 16, generator=generator)[kind][None, None].to(dtype)
    k = torch.randn(1, 1, 256, 16, generator=generator).to(dtype)
    _, components = score_heads(q, k, (16, 16), IdentifyConfig())
    spread = components[0, 0].flatten(0, 1).amax(dim=0)
    assert spread.tolist() == [1.0] * (kinds - 1) + [0.0] * (4 - kinds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grid", [(8, 8), (16, 16)])
def test_a_map_that_is_not_finite_shows_in_its_own_head_alone(grid, value, dtype):
    """NaN score and image where the model's q wasn't finite; the other heads and frames are as they were."""
    q, k = (x.to(dtype) for x in planted(2, 2, grid))
    scores, components = score_heads(q, k, grid, IdentifyConfig())
    q[1, 0, 5] = value
    broken, images = score_heads(q, k, grid, IdentifyConfig())
    assert broken[1, 0].isnan()
    assert images[1, 0].isnan().all()
    assert broken[1].argmax() == 0
    torch.testing.assert_close(broken[[0, 0, 1], [0, 1, 1]], scores[[0, 0, 1], [0, 1, 1]])
    torch.testing.assert_close(images[[0, 0, 1], [0, 1, 1]], components[[0, 0, 1], [0, 1, 1]])


def test_frame_attention_is_softmax_of_scaled_products(generator):
    """Each row of a map is softmax(q kᵀ/√D), in float32 whatever the model's dtype."""
    q, k = torch.randn(2, 2, 12, 8, generator=generator).bfloat16()
    maps = frame_attention(q, k)
    expected = torch.softmax(q[1].double() @ k[1].double().T / 8**0.5, dim=-1)
    torch.testing.assert_close(maps[1].double(), expected, atol=1e-6, rtol=1e-5)


def test_response_is_the_mean_over_a_nouns_tokens(generator):
    """The softmax runs over all text tokens, its mean over the noun's alone; shards of rows give the same values."""
    q, k = torch.randn(10, 3, 8, generator=generator), torch.randn(6, 3, 8, generator=generator)
    response = cross_response(q, k, [(1, 2), (5,)])
    maps = torch.softmax(torch.einsum("ihd,jhd->hij", q.double(), k.double()) / 8**0.5, dim=-1)
    torch.testing.assert_close(response[0].double(), maps[:, :, [1, 2]].mean(dim=-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(response[1].double(), maps[:, :, 5], atol=1e-6, rtol=1e-5)
    shards = torch.cat([cross_response(part, k, [(1, 2), (5,)]) for part in q.split([3, 6, 1])], dim=-1)
    torch.testing.assert_close(shards, response, atol=1e-6, rtol=1e-5)


def test_response_survives_large_scores_and_has_nouns_in_order(generator):
    """Scores of hundreds overflow nothing; no noun gives no map; a token may belong to two nouns."""
    q, k = (
        60 * torch.randn(5, 2, 8, generator=generator).bfloat16(),
        torch.randn(6, 2, 8, generator=generator).bfloat16(),
    )
    response = cross_response(q, k, [(4,), (0, 4), (4, 1, 2)])
    maps = torch.softmax(torch.einsum("ihd,jhd->hij", q.double(), k.double()) / 8**0.5, dim=-1)
    for noun, tokens in enumerate([[4], [0, 4], [4, 1, 2]]):
        torch.testing.assert_close(response[noun].double(), maps[:, :, tokens].mean(dim=-1), atol=1e-3, rtol=1e-2)
    assert cross_response(q, k, []).shape == (0, 2, 5)


def test_deviation_is_within_heads_and_adds_over_ranks(generator):
    """Variance around each head's own mean, averaged over heads; shards of rows add up to the whole."""
    q, k = torch.randn(30, 3, 8, generator=generator), torch.randn(6, 3, 8, generator=generator)
    scores = torch.einsum("ihd,jhd->hij", q.double(), k.double())[:, :, [1, 4]] / 8**0.5
    sums = sum(score_deviation(part, k, (1, 4)) for part in q.split([7, 20, 3]))
    torch.testing.assert_close(sums[:, 0], torch.full((3,), 60.0, dtype=torch.float64))
    expected = scores.flatten(1).var(dim=1, correction=0).mean().sqrt()
    torch.testing.assert_close(deviation(sums), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(score_deviation(q, k, (1, 4), memory=1), sums)
    shifted = score_deviation(q + 5 * torch.tensor([1.0, -1.0, 0.0])[:, None] * k.mean(0), k, (1, 4))
    assert torch.isfinite(deviation(shifted))
    assert deviation(score_deviation(q[:0], k, (1, 4))).isnan()


def test_select_response_modes():
    """peak_frame takes each frame's own head, peak_clip one for the clip, mean none."""
    responses = torch.zeros(1, 3, 2, 2, 2)
    responses[0, 1, 0, 0, 0] = 0.5
    responses[0, 2, 1, 1, 1] = 0.9
    maps, heads = select_response(responses, "peak_frame")
    assert heads.tolist() == [[1, 2]]
    torch.testing.assert_close(maps[0], torch.stack([responses[0, 1, 0], responses[0, 2, 1]]))
    maps, heads = select_response(responses, "peak_clip")
    assert heads.tolist() == [[2, 2]]
    torch.testing.assert_close(maps[0], responses[0, 2])
    maps, heads = select_response(responses, "mean")
    assert heads.tolist() == [[NO_HEAD, NO_HEAD]]
    torch.testing.assert_close(maps, responses.mean(dim=1))


@pytest.mark.parametrize("mode", ["peak_frame", "peak_clip"])
def test_ties_go_to_the_lowest_head(mode):
    """Equal peaks give the same head on every device and rank."""
    responses = torch.zeros(1, 40, 3, 2, 2)
    responses[0, 7:, :, 1, 0] = 0.25
    assert select_response(responses, mode)[1].tolist() == [[7, 7, 7]]


def test_an_image_scores_the_same_on_a_finer_grid() -> None:
    """Twice as many tokens a side: S2's weight takes back what sums over larger blocks add, S3's what slopes lose."""
    coarse = torch.zeros(1, 32, 48)
    coarse[0, 6:14, 4:20] = 1.0
    coarse[0, 20:27, 30:41] = 0.5
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    method = MethodConfig(grid=32 * 48)
    one, other = method.identify, method.scaled_to(4 * 32 * 48).identify
    assert one.structure_weight * _block_variance(coarse, 8) == pytest.approx(
        other.structure_weight * _block_variance(fine, 8), rel=1e-5
    )
    edges = one.edge_weight * _edge_strength(coarse), other.edge_weight * _edge_strength(fine)
    assert edges[0] == pytest.approx(edges[1], rel=0.1)  # corners are rounder
    assert _edge_strength(coarse) > 1.8 * _edge_strength(fine)
