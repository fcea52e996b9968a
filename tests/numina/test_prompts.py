import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numina.errors import PromptError
from numina.prompts import Target, check_targets, find_mentions, parse_targets

CAPTIONS = {
    "three red circles and two blue squares moving on a grey background": {"circles": 3, "squares": 2},
    "three cats and two dogs play in a garden": {"cats": 3, "dogs": 2},
    "a lone wolf howls at the moon": {"wolf": 1},
    "A single tree stands on a hill": {"tree": 1},
    "A pair of swans glide across a lake": {"swans": 2},
    "a couple of old men, a trio of dancers": {"men": 2, "dancers": 3},
    "two dozen eggs in a basket": {"eggs": 24},
    "12 balloons float over a city": {"balloons": 12},
    "twenty-one birds": {"birds": 21},
    "twenty one white birds flying": {"birds": 21},
    "An apple and three oranges": {"apple": 1, "oranges": 3},
    "A photo of a dog": {"dog": 1},
    "a group of five people walking on a beach": {"people": 5},
    "a bouquet of eight roses": {"roses": 8},
    "two dogs chase a cat": {"dogs": 2, "cat": 1},
    "a dog chases two cats under a tree and a bridge": {"dog": 1, "cats": 2},
    "three cats on two sofas": {"cats": 3, "sofas": 2},
    "In the park, a dog and two cats play with a ball.": {"dog": 1, "cats": 2},
    "three sheep, two fish and four deer": {"sheep": 3, "fish": 2, "deer": 4},
    "four women and three children": {"women": 4, "children": 3},
    "three black and white cows graze": {"cows": 3},
    "three small, red birds": {"birds": 3},
    "two sports cars racing down a street": {"cars": 2},
    "Three hot air balloons rise above two wooden houses.": {"balloons": 3, "houses": 2},
    "three fire trucks parked near a station": {"trucks": 3},
    "a small brown dog running through a field": {"dog": 1},
    "a flying bird": {"bird": 1},
    "a glass bus": {"bus": 1},
    "a red cross and three dogs cross a street": {"cross": 1, "dogs": 3, "street": 1},
    "Six origami cranes hang from a wooden beam": {"cranes": 6},
    "seven penguins waddle across the ice while two seals watch": {"penguins": 7, "seals": 2},
    "five tourists stand on one leg": {"tourists": 5},
    "a red ball and a blue ball rolling": {"ball": 2},
    "Two cats sleep. The two cats are tired.": {"cats": 2},
    "one of the dogs jumps over the fence": {},
    "two 3D printed dinosaurs and five potted plants": {"dinosaurs": 2, "plants": 5},
    "five seconds of two butterflies": {"butterflies": 2},
    "a few clouds and many trees": {},
    "the sky over a lake": {},
    "": {},
}


@pytest.mark.parametrize("prompt", CAPTIONS)
def test_captions_are_read_as_people_read_them(prompt):
    """Counts, nouns and their order; scenery, measures and names of the picture are no targets."""
    assert {target.noun: target.count for target in parse_targets(prompt)} == CAPTIONS[prompt]
    assert [target.noun for target in parse_targets(prompt)] == list(CAPTIONS[prompt])


NUMERALS = {1: "one", 2: "two", 3: "3", 5: "five", 8: "eight", 12: "twelve"}
NOUNS = ["cat", "fox", "butterfly", "wolf", "person", "sheep", "bus", "glass", "circle"]
PLURALS = ["cats", "foxes", "butterflies", "wolves", "people", "sheep", "buses", "glasses", "circles"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(range(len(NOUNS))),
            st.sampled_from(sorted(NUMERALS)),
            st.lists(st.sampled_from(["red", "small", "shiny", "wooden"]), max_size=2, unique=True),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda part: part[0],
    )
)
def test_composed_captions_are_read_back(parts):
    """Any list of counted, modified nouns gives back its counts, and phrases that are modifiers and noun."""
    phrases = [[*modifiers, (PLURALS if count > 1 else NOUNS)[noun]] for noun, count, modifiers in parts]
    counted = [" ".join([NUMERALS[count], *phrase]) for (_, count, _), phrase in zip(parts, phrases, strict=True)]
    prompt = " and ".join(counted) + " on a table"
    targets = parse_targets(prompt)
    assert [target.count for target in targets] == [count for _, count, _ in parts]
    for target, phrase in zip(targets, phrases, strict=True):
        (mention,) = find_mentions(prompt, target.noun)
        assert prompt[slice(*mention.noun)] == phrase[-1]
        assert prompt[slice(*mention.phrase)] == " ".join(phrase)


def test_every_mention_in_any_number_and_case():
    """All occurrences are found, as whole words; the phrase has the modifiers and never the numeral."""
    prompt = "Three small red birds sing. A Bird flies off; the red birds follow the birdsong."
    mentions = find_mentions(prompt, "birds")
    assert [prompt[slice(*mention.noun)] for mention in mentions] == ["birds", "Bird", "birds"]
    assert [prompt[slice(*mention.phrase)] for mention in mentions] == ["small red birds", "Bird", "red birds"]


@pytest.mark.parametrize(
    ("prompt", "noun", "phrase"),
    [
        ("the dogs chase cats", "cats", "cats"),
        ("dogs play with red balls", "balls", "red balls"),
        ("three fire trucks", "fire truck", "fire trucks"),
        ("two large fire  trucks", "fire trucks", "large fire  trucks"),
        ("a couple of old men", "man", "old men"),
        ("twenty one white birds", "bird", "white birds"),
    ],
)
def test_phrases_stop_at_what_is_no_modifier(prompt, noun, phrase):
    """Verbs, prepositions and numerals are outside a phrase; a noun of several words is one noun."""
    (mention,) = find_mentions(prompt, noun)
    assert prompt[slice(*mention.phrase)] == phrase


def test_an_absent_noun_is_named_with_its_prompt():
    """The error holds both, so that the row can be mended; a part of a word is no mention."""
    with pytest.raises(PromptError, match=r"'cat' isn't in prompt 'a cathedral and a cat-like fox'"):
        find_mentions("a cathedral and a cat-like fox", "cat")
    with pytest.raises(PromptError, match="empty"):
        find_mentions("a cathedral", " ")


def test_sound_targets_pass():
    """What the parser finds in a plain prompt passes its own check."""
    prompt = "three cats and two dogs"
    check_targets(prompt, parse_targets(prompt))


@pytest.mark.parametrize(
    ("prompt", "targets", "message"),
    [
        ("  ", [Target("cats", 3)], "has no text"),
        ("cats", [], "has no targets"),
        ("no cats", [Target("cats", 0)], "a count must be from 1 to 20"),
        ("many cats", [Target("cats", 21)], "a count must be from 1 to 20"),
        ("three cats", [Target("cats", 3), Target("cat", 1)], "are one noun"),
        ("three cats", [Target("cats", 3), Target("cats", 3)], "are one noun"),
        ("three cats", [Target("dogs", 3)], "'dogs' isn't in prompt 'three cats'"),
    ],
)
def test_targets_that_can_t_be_asked_are_refused(prompt, targets, message):
    """Each fault is named with its value, its rule and the remedy."""
    with pytest.raises(PromptError, match=message):
        check_targets(prompt, targets)


def test_max_count_is_the_callers():
    """What a frame can hold depends on the model: the limit can be set."""
    check_targets("thirty birds", [Target("birds", 30)], max_count=40)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_without_raising(prompt):
    """Parsing never fails, and what it finds is mentioned in the prompt."""
    for target in parse_targets(prompt):
        assert target.count >= 0
        assert target.noun in prompt
