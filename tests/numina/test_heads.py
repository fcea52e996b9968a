import numpy as np
import pytest
import torch
from scipy import ndimage

from numina.config import IdentifyConfig
from numina.heads import NO_HEAD, cross_response, frame_attention, score_heads, select_response


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def oracle_head(attention: np.ndarray, grid: tuple[int, int], config: IdentifyConfig) -> tuple[float, np.ndarray]:
    """Score and image of one head by a plain float64 SVD, block loop and scipy's Sobel filter."""
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
    return score, image


@pytest.mark.parametrize("grid", [(8, 8), (9, 13), (5, 7)])
def test_scores_and_images_equal_a_float64_svd(grid, generator):
    """Scores and components are those of the plain definition, also where the grid doesn't divide into blocks."""
    n = grid[0] * grid[1]
    q, k = torch.randn(2, n, 3, 16, generator=generator)
    attention = frame_attention(q, k)
    config = IdentifyConfig(structure_blocks=3, edge_weight=0.3)
    scores, components = score_heads(attention, grid, config)
    for head in range(3):
        score, image = oracle_head(attention[head].numpy(), grid, config)
        np.testing.assert_allclose(components[head].numpy(), image, atol=2e-5)
        assert scores[head].item() == pytest.approx(score, rel=1e-5)


def test_a_head_that_sees_objects_beats_a_uniform_one():
    """Two blobs that attend to themselves score above a head that attends everywhere alike, whose score is 0."""
    grid = (8, 8)
    blobs = torch.zeros(grid)
    blobs[1:3, 1:3], blobs[5:7, 4:7] = 1, 2
    same = (blobs.flatten()[:, None] == blobs.flatten()).float()
    attention = torch.stack([torch.full((64, 64), 1 / 64), same / same.sum(dim=1, keepdim=True)])
    scores, components = score_heads(attention, grid, IdentifyConfig())
    assert scores[0] == 0.0
    assert components[0].abs().max() == 0.0
    assert scores.argmax() == 1
    assert components[1].amax() == 1.0
    assert components[1].amin() == 0.0


def test_float32_noise_is_no_image(generator):
    """A map that is uniform up to rounding gives a flat image, not rounding noise at full range."""
    attention = torch.full((1, 64, 64), 1 / 64) * (1 + 1e-7 * torch.randn(1, 64, 64, generator=generator))
    assert score_heads(attention, (8, 8), IdentifyConfig())[0].item() == 0.0


def test_frame_attention_is_softmax_of_scaled_products(generator):
    """Each row of a map is softmax(q kᵀ/√D), in float32 whatever the model's dtype."""
    q, k = torch.randn(2, 12, 2, 8, generator=generator).bfloat16()
    maps = frame_attention(q, k)
    expected = torch.softmax(q[:, 1].double() @ k[:, 1].double().T / 8**0.5, dim=-1)
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
