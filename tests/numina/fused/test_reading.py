"""The fused reading: right where flat shapes never lead, and the same whatever a model adds to its maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from numina.fused.ground import noise
from numina.fused.responses import ground, normalised
from numina.layout import Capture, identify_layout
from tests.benchmarks.atlas import read as atlas_read
from tests.benchmarks.stress import identify_config
from tests.numina.fused.read import captured, read
from tests.numina.fused.troubles import KINDS, Clip, clip, clips

FUSED = identify_config("fused")
SAID = ["control", "parts", "hidden", "leak", "mixed"]  # what the properties are tried on


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_trouble_are_read(kind: str) -> None:
    """Two mild clips and a hard one of each; one of three may be wrong where kinds are hard to tell at all."""
    right = [tuple(read(own, FUSED).clip_counts()) == own.counts for own in clips(kind, "mild", 2)]
    right.append(tuple(read(own := clip(kind, "hard", 0), FUSED).clip_counts()) == own.counts)
    assert sum(right) >= (2 if kind in ("touching", "texture", "hidden", "dim") else 3)


ATLASES = {"shapes": (256, 0.97, 0.98), "scenes": (576, 0.3, 0.5)}


@pytest.mark.parametrize("world", ATLASES)
def test_maps_of_a_real_model_are_read(world: str) -> None:
    """60 clips of each embedded model, captured on a GPU by tests/benchmarks/atlas.py, with their exact counts: the
    share of clips of which all, and of nouns that, are read right. The harder world's goal is 0.88 of its clips."""
    tokens, clips, nouns = ATLASES[world]
    atlas = load_file(Path(__file__).parent / f"{world}.safetensors")
    found = [(true, got) for true, got, _ in atlas_read(atlas, identify_config("fused", tokens=tokens))]
    assert len(found) == 60
    assert np.mean([true == got for true, got in found]) >= clips
    assert np.mean([t == g for true, got in found for t, g in zip(true, got, strict=True)]) >= nouns


def test_confidence_falls_where_evidence_is_near_the_threshold() -> None:
    """A weak instance beside a strong one is surer with a threshold far below it than with one beside it."""
    own = captured(clip("dim", "mild", 0))
    sure = [
        float(identify_layout(own, replace(FUSED, evidence=evidence)).confidence.min()) for evidence in (0.1, 0.5, 0.7)
    ]
    assert sure[0] > max(sure[1:])
    assert all(0.5 <= confidence <= 1 for confidence in sure)


def test_cross_attention_alone_breaks() -> None:
    """The same clips, read by peaks: what the fused reading is for."""
    closed = identify_config("closed")
    for kind in ("parts", "touching", "sink", "first", "absent"):
        assert tuple(read(own := clip(kind, "hard", 1), closed).clip_counts()) != own.counts


def mirrored(own: Clip) -> Clip:
    def tokens(x: np.ndarray) -> np.ndarray:
        return x.reshape(*own.blocks.shape[2:], *x.shape[1:])[:, :, ::-1].reshape(x.shape)

    return replace(own, blocks=own.blocks[..., ::-1].copy(), q=tokens(own.q).copy(), k=tokens(own.k).copy())


@pytest.mark.parametrize("kind", SAID)
def test_a_mirrored_clip_is_read_alike(kind: str) -> None:
    """Left is right: counts agree, and labels cover the mirrored places."""
    own = clip(kind, "mild", 0)
    one, other = read(own, FUSED).labels > 0, read(mirrored(own), FUSED).labels[..., ::-1] > 0
    assert (one & other).sum() > 0.9 * (one | other).sum()
    assert read(own, FUSED).clip_counts().tolist() == read(mirrored(own), FUSED).clip_counts().tolist()


@pytest.mark.parametrize("kind", SAID)
def test_nouns_may_change_places(kind: str) -> None:
    """The order of a prompt's nouns decides nothing."""
    own = clip(kind, "mild", 0)
    swapped = replace(own, blocks=own.blocks[:, ::-1].copy())
    assert read(swapped, FUSED).clip_counts().tolist() == read(own, FUSED).clip_counts().tolist()[::-1]


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("change", ["scale", "floor", "sink", "bright frame"])
def test_what_a_model_adds_changes_nothing(kind: str, change: str) -> None:
    """Scores of another size, an even floor, a sink token and a bright frame."""
    own = clip(kind, "mild", 1)
    blocks = own.blocks.copy()
    peak = blocks.max(axis=(1, 2, 3, 4), keepdims=True)
    if change == "scale":
        blocks *= 1000
    elif change == "floor":
        blocks += 0.5 * peak
    elif change == "sink":
        blocks[:, :, :, 2, 3] = 5 * peak[:, :, :, 0, 0]
    else:
        blocks[:, :, 4] *= 2.5
    assert read(replace(own, blocks=blocks), FUSED).clip_counts().tolist() == read(own, FUSED).clip_counts().tolist()


def test_a_thing_keeps_its_number_while_it_is_hidden() -> None:
    """Behind another noun's for some frames, then back: one track."""
    own = clip("hidden", "hard", 0)
    labels = read(own, FUSED).labels[0]
    frames = [frame for frame in range(len(labels)) if (labels[frame] > 0).any()]
    assert len(np.unique(labels)) == 2
    assert len(frames) < len(labels)
    assert max(frames) - min(frames) > len(frames) - 1


def test_a_gap_is_filled_unless_others_hide_it() -> None:
    """An instance that isn't seen in a frame, or isn't any more, is drawn there: of its shape in the nearest frame,
    between where it was and will be. Not where another's instance has most of that place."""
    own = captured(clip("control", "mild", 0))
    whole = identify_layout(own, FUSED)
    frames = whole.labels.shape[1]
    assert (whole.counts() == whole.clip_counts()[:, None]).all()
    unseen = replace(own, responses=own.responses.copy())
    for frame in (4, frames - 1):
        unseen.responses[0, frame] = 0
    filled = identify_layout(unseen, FUSED)
    assert filled.clip_counts().tolist() == whole.clip_counts().tolist()
    assert (filled.counts() == filled.clip_counts()[:, None]).all()
    drawn, true = filled.labels[0, 4] > 0, whole.labels[0, 4] > 0
    assert (drawn & true).sum() > 0.7 * (drawn | true).sum()
    assert not ((filled.labels > 0).sum(axis=0) > 1).any()


@given(arrays(np.float32, (2, 3, 5, 7), elements=st.floats(-2, 2, width=32)))
def test_noise_is_the_grounds_that_is_taken_off(maps: np.ndarray) -> None:
    """With torch where the maps are, and without where they are read: the same."""
    with_torch = ground(torch.from_numpy(maps))[1][..., 0, 0].numpy()
    np.testing.assert_allclose(noise(maps), with_torch, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 1, 3, 5), (1, 2, 3, 4, 4)])
def test_nothing_is_in_maps_without_contrast(shape: tuple[int, ...]) -> None:
    """Flat maps, of any size, hold no instance."""
    shares, peaks = (found.numpy() for found in normalised(torch.full(shape, 0.3)))
    coordinates = np.zeros((*shape[2:], 4), np.float16)
    assert not identify_layout(Capture(shares, None, coordinates, peaks), FUSED).labels.any()


def test_a_capture_without_self_attention_is_refused() -> None:
    """And one that broke down says where."""
    capture = captured(clip("control", "mild", 0))
    with pytest.raises(ValueError, match="source = fused reads self-attention, but the capture has none"):
        identify_layout(replace(capture, coordinates=None), FUSED)
    assert capture.coordinates is not None
    broken = capture.coordinates.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"self-attention coordinates of frame 3 .* NaN"):
        identify_layout(replace(capture, coordinates=broken), FUSED)
