"""Enhanced prompts say their counts again, and still ask for the same; again enhanced they stay as they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numina.errors import InputError
from numina.prompts.nouns import counted, joined, noun_form, with_article
from numina.prompts.targets import Target, check_targets, find_mentions, parse_targets
from pipelines.rewriting.rules import MAX_TOKENS, enhance_prompt, keeps_targets, token_bound
from pipelines.testbed import WEIGHTS
from pipelines.testbed.rewriting import MAX_TOKENS as TESTBED_TOKENS
from pipelines.testbed.world import heldout_prompts

PROMPTS = [
    "A lone astronaut floating in space.",
    "Three cats chasing two dogs",
    "a red ball and a blue ball",
    "a cat sleeps while another cat plays",
    "Two man and two dogs resting near a campfire.",
    "Five penguins sliding on ice as two seals play in the water and a single whale breaches.",
    'Two tourists watching two monkeys fighting for one "banana"',
    "A volcano spewing embers as five meteors streak across the sky and one eagle circles.",
    "an owl, a pair of foxes and twelve sheep on a hill!",
    "a pair of scissors beside a dog",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_counts_are_said_again_and_stay_the_same(prompt: str) -> None:
    """Every count stands there in words and digits; nouns are found, nothing else is asked for; once is enough."""
    targets = parse_targets(prompt)
    enhanced = enhance_prompt(prompt, targets)
    assert enhanced.startswith(prompt.rstrip("."))
    assert parse_targets(enhanced) == targets
    check_targets(enhanced, targets)
    for target in targets:
        assert f"xactly {counted(target.noun, target.count)}" in enhanced
        assert f"{noun_form(target.noun, target.count)}: {target.count}" in enhanced
    assert enhance_prompt(enhanced, targets) == enhanced
    assert enhance_prompt(enhanced, parse_targets(enhanced)) == enhanced


def test_given_targets_are_said_where_the_prompt_says_none() -> None:
    """A noun of several words, and one that the prompt doesn't count."""
    targets = [Target("traffic lights", 3), Target("people", 5)]
    enhanced = enhance_prompt("a crowd of people below traffic lights", targets)
    assert "Exactly three traffic lights and exactly five people are in view (traffic lights: 3, people: 5)" in enhanced
    assert keeps_targets(enhanced, targets)


def test_targets_that_are_read_otherwise_come_first() -> None:
    """Where the prompt's own words would be read as another count, the counts are said before it."""
    enhanced = enhance_prompt("a cat in a mirror", [Target("cat", 2)])
    assert enhanced.startswith("Exactly two cats are in view")
    assert keeps_targets(enhanced, [Target("cat", 2)])


def test_long_prompts_get_what_room_there_is() -> None:
    """A shorter form, then none: nothing may be cut off."""
    targets = (Target("cats", 3),)
    forms = [enhance_prompt(f"three cats {'very ' * words}asleep", targets) for words in (10, 210, 252, 400)]
    assert [
        form.endswith(tail) for form, tail in zip(forms, ("to end.", "to end.", "three cats.", "asleep"), strict=True)
    ]
    assert all(token_bound(form) <= MAX_TOKENS for form in forms[:3])
    assert "xactly" not in forms[3]


def test_the_bound_holds_for_a_real_tokenizer() -> None:
    """No text has more tokens by the embedded model's tokenizer than the estimate; it is one for each word there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    for prompt in PROMPTS:
        text = enhance_prompt(prompt, parse_targets(prompt))
        assert len(tokenizer(text)["input_ids"]) <= token_bound(text)


def test_the_embedded_models_form_keeps_to_its_words() -> None:
    """No unknown word, no token too many, the same targets, and `one` for a counting article."""
    from transformers import AutoTokenizer

    from pipelines.testbed.world import TEXT_TOKENS

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    assert TESTBED_TOKENS == TEXT_TOKENS
    for prompt in heldout_prompts(300, 1):
        targets = parse_targets(prompt.text)
        enhanced = enhance_prompt(prompt.text, targets, "testbed")
        ids = tokenizer(enhanced, truncation=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= TEXT_TOKENS
        assert parse_targets(enhanced) == targets
        assert len(enhanced) > len(prompt.text)
        assert enhance_prompt(enhanced, targets, "testbed") == enhanced
    one = enhance_prompt("a red circle moving on a grey background", [Target("circle", 1)], "testbed")
    assert one == "one red circle moving on a grey background and 1 red circle"


def test_rules_are_named() -> None:
    """An unknown one is an error that says which there are."""
    with pytest.raises(InputError, match="'best' aren't known; choose from general, testbed"):
        enhance_prompt("three cats", [Target("cats", 3)], "best")


def test_what_keeps_targets() -> None:
    """Same nouns, same counts; a lost noun or another count doesn't."""
    targets = [Target("cats", 3), Target("dog", 1)]
    assert keeps_targets("Exactly three cats play with one dog on a lawn.", targets)
    assert keeps_targets("One dog watches 3 cats, three cats in all.", targets)
    for text in ("three cats", "three cats and two dogs", "several cats and one dog", "", "3 felines and a dog"):
        assert not keeps_targets(text, targets), text


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["cat", "fox", "child", "sheep", "bus", "knife", "butterfly"]), st.integers(1, 20)),
        min_size=1,
        max_size=3,
        unique_by=lambda target: target[0],
    ),
    st.sampled_from(["play on a lawn", "seen from above", "in a park, with a tree behind", "beside a lake at dusk."]),
)
def test_any_counts(wanted: list[tuple[str, int]], ending: str) -> None:
    """Up to the largest count that a set may ask for."""
    prompt = f"{joined([counted(noun, count) for noun, count in wanted])} {ending}"
    targets = parse_targets(prompt)
    assert [target.count for target in targets] == [count for _, count in wanted]
    enhanced = enhance_prompt(prompt, targets)
    assert parse_targets(enhanced) == targets
    assert enhance_prompt(enhanced, targets) == enhanced
    for target in targets:
        assert len(find_mentions(enhanced, target.noun)) >= 3


def test_forms_of_nouns() -> None:
    """Singular for one, plural for more, whatever form is given."""
    for noun, one, more in (
        ("foxes", "fox", "foxes"), ("person", "person", "people"), ("hot dogs", "hot dog", "hot dogs"),
        ("sheep", "sheep", "sheep"), ("octopus", "octopus", "octopi"), ("Bus", "bus", "buses"),
        ("men", "man", "men"), ("goldfish", "goldfish", "goldfish"),
    ):  # fmt: skip
        assert (noun_form(noun, 1), noun_form(noun, 4)) == (one, more)
    assert (counted("cats", 1), counted("cat", 20), counted("cat", 21)) == ("one cat", "twenty cats", "21 cats")
    assert (with_article("owls"), with_article("cat"), with_article("hourglass")) == ("an owl", "a cat", "an hourglass")
    assert [joined(list(text)) for text in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
