"""The world keeps its promises: balanced prompts, a strict held-out split, scenes without contact."""

from collections import Counter

import numpy as np

from pipelines.testbed import counter, world


def _combinations(prompts):
    return [(target.colour, target.shape, target.count) for prompt in prompts for target in prompt.targets]


def test_training_never_shows_a_heldout_combination():
    held = world.heldout_combinations()
    assert len(held) == 30
    assert held.isdisjoint(_combinations(world.make_prompts(2000, 0, split="train")))
    assert held.issuperset(_combinations(world.heldout_prompts(200, 0)))


def test_heldout_prompts_are_balanced_and_repeatable():
    prompts = world.heldout_prompts(120, 7)
    assert prompts == world.heldout_prompts(120, 7)
    assert prompts[:50] == world.heldout_prompts(50, 7)
    assert Counter(len(prompt.targets) for prompt in prompts) == {1: 60, 2: 60}
    singles = Counter(prompt.targets[0].count for prompt in prompts if len(prompt.targets) == 1)
    assert singles == dict.fromkeys(range(1, 7), 10)


def test_pairs_differ_in_colour_and_shape_and_fit():
    for prompt in world.make_prompts(500, 1, nouns=(2,)):
        first, second = prompt.targets
        assert first.colour != second.colour
        assert first.shape != second.shape
        assert first.count + second.count <= world.MAX_OBJECTS


def test_a_prompt_says_what_its_targets_are():
    prompt = world.Prompt(
        text=world.prompt_text(
            [
                world.Target(colour="red", shape="circle", count=3),
                world.Target(colour="blue", shape="cross", count=1),
            ],
            "grey",
        ),
        targets=(),
        background="grey",
    )
    assert prompt.text == "three red circles and one blue cross moving on a grey background"
    for drawn in world.make_prompts(300, 2):
        assert tuple(counter.parse(drawn.text)) == drawn.targets


def test_shapes_never_touch_and_stay_inside():
    rng = np.random.default_rng(0)
    scenes = world.draw_scenes(world.make_prompts(200, rng, nouns=(2,), counts=(3, 4, 5, 6)), rng)
    centres = scenes.centres()
    assert np.linalg.norm(scenes.velocity, axis=-1).max() <= world.MAX_SPEED
    for kind, radius, paths in zip(scenes.kind, scenes.radius, centres, strict=True):
        there = kind >= 0
        reach, paths = radius[there], paths[there]
        assert (paths >= reach[:, None, None]).all()
        assert (paths <= world.SIZE - reach[:, None, None]).all()
        distance = np.linalg.norm(paths[:, None] - paths[None], axis=-1).min(-1)
        np.fill_diagonal(distance, np.inf)
        assert (distance - reach[:, None] - reach[None] >= world.MIN_GAP).all()


def test_rendering_is_repeatable_and_picks_frames():
    prompts, videos = world.clips(3, 5)
    again, same = world.clips(3, 5)
    assert prompts == again
    assert (videos == same).all()
    assert videos.shape == (3, world.FRAMES, world.SIZE, world.SIZE, 3)
    assert videos.dtype == np.uint8
    rng = np.random.default_rng(1)
    scenes = world.draw_scenes(prompts, rng)
    assert (world.render(scenes, frames=[4, 9]) == world.render(scenes)[:, :, [4, 9]]).all()
