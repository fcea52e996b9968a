import dataclasses
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from numina.config import GuideConfig, IdentifyConfig, MethodConfig, RefineConfig
from numina.errors import ConfigError
from numina.schedule import noise_levels, schedule_times, times_of

PRESETS = Path(__file__).parents[2] / "configs" / "method"


def load(preset: str, *overrides: str) -> MethodConfig:
    merged = OmegaConf.merge(
        OmegaConf.structured(MethodConfig),
        OmegaConf.load(PRESETS / f"{preset}.yaml"),
        OmegaConf.from_dotlist(list(overrides)),
    )
    return OmegaConf.to_object(merged)


def test_paper_preset_is_the_defaults():
    """The YAML of the published form and the dataclasses' defaults never drift apart."""
    assert load("paper") == MethodConfig()


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_list_every_field(preset):
    """A preset shows all of its values: nothing is inherited silently."""
    listed = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml"))
    assert listed["preset"] == preset
    assert set(listed) == {field.name for field in dataclasses.fields(MethodConfig)}
    for stage, kind in {"identify": IdentifyConfig, "refine": RefineConfig, "guide": GuideConfig}.items():
        assert set(listed[stage]) == {field.name for field in dataclasses.fields(kind)}


def test_published_values():
    """What the publication states is what the preset paper does."""
    paper = load("paper")
    assert paper.identify.capture_step(schedule_times(50)) == 20
    assert paper.identify.capture_blocks(30) == [15]
    assert paper.identify.needs_self_attention
    assert (paper.guide.remove, paper.guide.add, paper.refine.disc_radius) == (10.0, 0.8, 5.0)
    assert not load("closed").identify.needs_self_attention


@pytest.mark.parametrize(
    ("preset", "differs"),
    [
        ("quick", ["guide.start=0.2", "guide.until=0.6"]),
        ("few-step", ["identify.step=0.33", "guide.until=0.8", "guide.start=0.25"]),
    ],
)
def test_a_preset_that_costs_less_differs_from_closed_in_what_its_head_says(preset: str, differs: list[str]) -> None:
    """What is mended in `closed` is mended in them."""
    assert load(preset) == load("closed", f"preset={preset}", *differs)


def test_names_of_outputs_stay():
    """Settings that came later are named only where they change what comes out: older outputs of `closed` go on."""
    named = load("closed").named()
    assert not {"schedule_by", "preset"} & set(named)
    assert not {"affinity", "evidence"} & set(named["identify"])
    assert not {"confidence", "start"} & set(named["guide"])
    assert load("closed", "guide.start=0.2").named()["guide"]["start"] == 0.2
    assert load("closed", "guide.confidence=0.5").named()["guide"]["confidence"] == 0.5
    digest = hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=8).hexdigest()
    assert digest == "6ecc263b93bb8fff"


def test_what_has_another_meaning_has_another_name():
    """`paper` and `released` count steps since the first outputs, and a copy under `head` keeps its own score."""
    assert load("paper").named()["schedule_by"] == load("released").named()["schedule_by"] == "index"
    assert "never below" in load("closed", "guide.overwrite=head").named()["guide"]["overwrite"]
    assert load("released").named()["guide"]["overwrite"] == "global"


@pytest.mark.parametrize(
    ("share", "steps", "index"), [(0.4, 25, 10), (0.29, 100, 29), (1.0, 50, 49), (0.0, 50, 0), (0.4, 1, 0)]
)
def test_capture_step_stays_in_the_schedule(share, steps, index):
    """The captured step exists, and rounding never loses a step that the share names exactly."""
    assert IdentifyConfig(step=share).capture_step(schedule_times(steps)) == index


@pytest.mark.parametrize(
    "levels",
    [
        [1.0, 0.9, 0.75, 0.5],  # the embedded model's
        noise_levels(4, 5.0),  # LightX2V's
        [0.98765, 0.93378, 0.8529, 0.60897],  # rCM's
    ],
)
def test_four_steps_of_any_recipe_are_read_at_the_third_and_guided_from_the_second(levels):
    """`few-step`, in the times of Wan's native shift."""
    times, few = times_of(levels, 3.0), load("few-step")
    assert (few.identify.capture_step(times), few.guide.first_step(times)) == (2, 1)


@pytest.mark.parametrize(
    ("start", "until", "steps", "index"),
    [(0.2, 0.4, 25, 5), (0.0, 0.4, 25, 0), (0.35, 0.4, 2, 0), (0.3, 0.4, 4, 1), (0.2, 0.6, 8, 1), (0.9, 0.6, 8, 4)],
)
def test_a_guided_run_starts_at_a_step_that_is_guided(start, until, steps, index):
    """The last at `start` or before, and never one past the last that guidance reaches: a corrected clip is guided."""
    assert GuideConfig(start=start, until=until).first_step(schedule_times(steps)) == index


@pytest.mark.parametrize(
    ("block", "blocks", "depth", "indices"),
    [
        (0.5, 1, 30, [15]),
        (0.25, 0, 8, [2, 3, 4, 5, 6, 7]),
        (0.25, 3, 30, [7, 18, 29]),
        (0.9, 5, 8, [7]),
        (1.0, 1, 8, [7]),
        (0.0, 2, 1, [0]),
    ],
)
def test_captured_blocks_are_spread_from_the_first_to_the_last(block, blocks, depth, indices):
    """0 is all of them; more than there are is all of them, too."""
    assert IdentifyConfig(source="peaks", block=block, blocks=blocks).capture_blocks(depth) == indices


def test_a_coarser_schedule_ends_at_the_captured_step():
    """Up to t* every stride-th step, from there on all: the step that is read is always run."""
    times = schedule_times(25)
    assert IdentifyConfig(stride=4).schedule(times) == [0, 4, 8, *range(10, 25)]
    assert IdentifyConfig(stride=1).schedule(times) == list(range(25))
    assert IdentifyConfig(stride=100, step=0.5).schedule(schedule_times(4)) == [0, 2, 3]


@pytest.mark.parametrize(
    "override",
    [
        "identify.step=1.5",
        "identify.blocks=3",
        "guide.anchor=-1",
        "identify.min_area=0",
        "identify.dbscan_eps=0",
        "refine.margin=-1",
        "guide.strength=inf",
        "guide.until=nan",
        "grid=-1",
    ],
)
def test_values_out_of_range_are_refused(override):
    """A bad value is an error that names the key, the value and the rule."""
    key, value = override.split("=")
    with pytest.raises(ConfigError, match=rf"method\.{key} = .*{value[-1]}.* must be") as error:
        load("paper", override)
    assert "preset paper has" in str(error.value)


@pytest.mark.parametrize(
    "override", ["identify.source=attention", "guide.overwrite=true", "guide.schedule=linear", "identify.stpe=0.4"]
)
def test_unknown_words_are_refused(override):
    """A mistyped choice or key is an error of the merge, before anything runs."""
    with pytest.raises(OmegaConfBaseException):
        load("paper", override)


def test_choices_are_checked_without_omegaconf():
    """The dataclass alone refuses a word that isn't a choice."""
    config = GuideConfig()
    object.__setattr__(config, "tokens", "word")  # past the shape checker of these tests
    with pytest.raises(ConfigError, match=r"method\.guide\.tokens = 'word', but it must be one of noun, phrase"):
        config.__post_init__()


GRIDS = st.integers(1, 20_000)


@given(st.sampled_from(sorted(path.stem for path in PRESETS.glob("*.yaml"))), GRIDS)
def test_lengths_and_areas_scale_with_the_grid_and_nothing_else_does(name, tokens):
    """Lengths go with √tokens, areas with tokens, whole ones rounded and never to 0; on its own grid a preset stays."""
    method = load(name)
    scaled = method.scaled_to(tokens)
    assert method.scaled_to(method.grid) is method
    assert scaled.scaled_to(tokens) is scaled
    area = tokens / method.grid if method.grid else 1.0
    side = area**0.5
    old, new = ({**asdict(m.identify), **asdict(m.refine), "anchor": m.guide.anchor} for m in (method, scaled))
    for length in ("dbscan_eps", "link_distance", "disc_radius", "max_move", "edge_weight"):
        assert new.pop(length) == pytest.approx(old.pop(length) * side)
    assert new.pop("structure_weight") == pytest.approx(old.pop("structure_weight") / area**2)
    for whole, scale in {"dbscan_min_samples": area, "min_area": area, "margin": side, "anchor": side}.items():
        before, after = old.pop(whole), new.pop(whole)
        assert after == before if not before else after >= 1
        assert not before or after == 1 or abs(after - before * scale) <= 0.5
    assert old == new
    assert replace(scaled.guide, anchor=None) == replace(method.guide, anchor=None)
    assert scaled.grid == (tokens if method.grid else 0)


def test_configs_are_frozen():
    """A config is a value: stages can't change each other's."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        RefineConfig().margin = 3
