"""Prompt sets of any size, balanced over nouns, counts, numbers of nouns and templates, with no prompt twice.

Rows take turns between the numbers of nouns a prompt may have; each of these has a sequence of its own
(`promptdigits`). A row depends on its number alone: a longer set begins with the shorter one's rows.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.prompts.digits import Numbers, PromptDigits, mixed
from cluster.prompts.words import FILLINGS, NOUNS, TEMPLATES
from cluster.rows import TARGETS
from numina.errors import PromptSetError
from numina.prompts.nouns import counted, noun_form, singular, with_article
from numina.prompts.targets import MAX_COUNT, Target, parse_targets

BLOCK_ROWS = 65_536
MOST_NOUNS = 3
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("targets", TARGETS),
        ("template", pa.string()),
        ("nouns", pa.int32()),  # how many the prompt names
    ]
)

_READ_BACK = 2_000  # made prompts whose targets are read again before a set is written
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a set is made of. Raises PromptSetError with all that is wrong with it."""

    nouns: tuple[str, ...] = tuple(noun for category in NOUNS.values() for noun in category)  # in singular or plural
    counts: tuple[int, ...] = tuple(range(1, 9))
    per_prompt: tuple[int, ...] = (1, 2, 3)  # numbers of nouns
    templates: tuple[str, ...] = TEMPLATES  # sentences with {targets}, and {place} and {time} if all have them
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*_noun_problems(self), *_number_problems(self), *_template_problems(self.templates)]
        if problems:
            raise PromptSetError(_listed("no prompt set can be made from this:", problems))

    @property
    def fillings(self) -> tuple[str, ...]:
        """What stands in every template beside {targets}."""
        return tuple(name for name in FILLINGS if name in _fields(self.templates[0]))

    def digits(self, nouns: int) -> PromptDigits:
        """The prompts with so many nouns."""
        cyclic = (len(self.counts), len(self.templates), *(len(FILLINGS[name]) for name in self.fillings))
        return PromptDigits(size=len(self.nouns), cyclic=cyclic, nouns=nouns, seed=self.seed)

    @property
    def most(self) -> int:
        """Rows before a prompt would come again."""
        turns = len(self.per_prompt)
        return min(self.digits(nouns).total * turns + place for place, nouns in enumerate(self.per_prompt))


def made_prompts(recipe: Recipe, number: int, *, block: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of a set, `block` at a time; each has SCHEMA's columns.

    Raises PromptSetError when there aren't so many different prompts, or when nouns or templates are such that targets
    aren't read back from a prompt.
    """
    if number > recipe.most:
        raise PromptSetError(
            f"{number} prompts were asked for, but only {recipe.most} differ with {len(recipe.nouns)} nouns, "
            f"{len(recipe.counts)} counts, {len(recipe.templates)} templates and {_listing(recipe.per_prompt)} nouns "
            "in a prompt; ask for fewer, give more nouns or templates, or no prompts with few nouns (--per-prompt)"
        )
    phrases = _Phrases(recipe)
    _require_readable(recipe, phrases)
    sample = np.unique(np.linspace(0, max(number - 1, 0), min(number, _READ_BACK)).astype(np.int64))
    _require_read_back(_batch(recipe, phrases, sample))
    for first in range(0, number, block):
        yield _batch(recipe, phrases, np.arange(first, min(number, first + block)))


# --- what is wrong with a recipe ---


def _noun_problems(recipe: Recipe) -> Iterator[str]:
    seen: dict[str, str] = {}
    for noun in recipe.nouns:
        if not noun.strip():
            yield "a noun is empty; name what is to be counted"
        elif (other := seen.setdefault(singular(noun.lower().split()[-1]), noun)) is not noun:
            yield f"nouns {other!r} and {noun!r} are counted as one; drop one of them"
    if recipe.per_prompt and max(recipe.per_prompt) > len(recipe.nouns):
        most = max(recipe.per_prompt)
        yield f"{len(recipe.nouns)} nouns don't make prompts with {most}; give more, or a lower --per-prompt"


def _number_problems(recipe: Recipe) -> Iterator[str]:
    for name, values, most in (
        ("counts", recipe.counts, MAX_COUNT),
        ("numbers of nouns", recipe.per_prompt, MOST_NOUNS),
    ):
        if not values or min(values) < 1 or max(values) > most or len(set(values)) < len(values):
            yield f"{name} are {_listing(values)}; give different numbers from 1 to {most}, e.g. 1-{most}"


def _template_problems(templates: Sequence[str]) -> Iterator[str]:
    if not templates:
        yield "there are no templates; give one, e.g. 'A video of {targets}.'"
    for template in templates:
        fields = _fields(template)
        if "targets" not in fields or len(set(fields)) < len(fields) or set(fields) - {"targets", *FILLINGS}:
            yield f"template {template!r} must hold {{targets}} once, and may hold {{place}} and {{time}}; correct it"
    if len({frozenset(_fields(template)) for template in templates}) > 1:
        yield "some templates have {place} or {time} and others haven't, and would soon repeat; give all the same"
    if len(set(templates)) < len(templates):
        yield "a template is there twice; drop one"


def _fields(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return []


def _listing(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def _listed(title: str, problems: Sequence[str]) -> str:
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([title, *(f"  {problem}" for problem in problems[:_SHOWN]), *more])


# --- words ---


class _Phrases:
    """A recipe's values in the seed's order, and all phrases: nouns by counts, once with a word, once with an article
    for one of them."""

    def __init__(self, recipe: Recipe) -> None:
        rng = np.random.default_rng(recipe.seed)

        def shuffled(values: Sequence[str]) -> list[str]:
            return [values[place] for place in rng.permutation(len(values))]

        self.nouns = shuffled([noun.lower() for noun in recipe.nouns])
        self.counts = [recipe.counts[place] for place in rng.permutation(len(recipe.counts))]
        self.templates = shuffled(recipe.templates)
        self.fillings = {name: shuffled(FILLINGS[name]) for name in recipe.fillings}
        each = [(noun, count) for noun in self.nouns for count in self.counts]
        in_words = [counted(noun, count) for noun, count in each]
        articled = [with_article(noun) if count == 1 else counted(noun, count) for noun, count in each]
        self.all = pa.array(in_words + articled, pa.string())
        self.opening = pa.array([_capital(phrase) for phrase in in_words + articled], pa.string())
        self.forms = pa.array([_head(noun, count) for noun, count in each], pa.string())
        self.takes_article = np.array(
            [[_article_counts(self, template, noun) for noun in self.nouns] for template in self.templates]
        )  # [templates, nouns]

    def sentence(self, template: str, targets: str, **fillings: str) -> str:
        """A template with these targets, and with the first of each filling that isn't given."""
        first = {name: values[0] for name, values in self.fillings.items()}
        text = template.format(targets=targets, **first | fillings)
        return _capital(text)


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _head(noun: str, count: int) -> str:
    """The word of a noun that targets name: `dogs` of `hot dogs`."""
    return noun_form(noun, count).split()[-1]


def _article_counts(phrases: _Phrases, template: str, noun: str) -> bool:
    """Whether "a" before the noun is read as a count wherever it may stand: "past a car" says where something is."""
    one, own = with_article(noun), Target(_head(noun, 1), 1)
    other = Target("lamps", 2) if own.noun != "lamp" else Target("dogs", 2)
    more = counted(other.noun, 2)
    orders = [(one, (own,)), (f"{one} and {more}", (own, other)), (f"{more} and {one}", (other, own))]
    return all(parse_targets(phrases.sentence(template, text)) == asked for text, asked in orders)


def _require_readable(recipe: Recipe, phrases: _Phrases) -> None:
    """Raise PromptSetError with every noun, template and filling that changes what is read of a prompt."""
    plain = [
        phrases.sentence(template, "three cats", **{name: filling})
        for template in phrases.templates
        for name, values in (phrases.fillings or {"none": [""]}).items()
        for filling in values
    ]
    problems = [f"{text!r} is read as {_told(found)}, not as 3 cats" for text in plain if (found := _cats(text))]
    for noun in phrases.nouns if not problems else []:
        for count in {min(phrases.counts), max(phrases.counts)}:
            text, asked = (
                phrases.sentence(phrases.templates[0], counted(noun, count)),
                Target(_head(noun, count), count),
            )
            if (targets := parse_targets(text)) != (asked,):
                problems.append(f"noun {noun!r}: {text!r} is read as {_told(targets)}")
    if problems:
        raise PromptSetError(_listed("targets are not read back as they are asked; choose other words:", problems))


def _cats(text: str) -> Sequence[Target]:
    """What is read of a sentence on three cats, if it isn't that."""
    found = parse_targets(text)
    return () if found == (Target("cats", 3),) else found or (Target("thing", 0),)


def _require_read_back(batch: pa.RecordBatch) -> None:
    problems = []
    for prompt, targets in zip(batch["prompt"].to_pylist(), batch["targets"].to_pylist(), strict=True):
        asked = tuple(Target(**target) for target in targets)
        if (found := parse_targets(prompt)) != asked:
            problems.append(f"{prompt!r} asks for {_told(asked)}, but is read as {_told(found)}")
    if problems:
        raise PromptSetError(_listed("targets are not read back as they are asked; choose other words:", problems))


def _told(targets: Sequence[Target]) -> str:
    return ", ".join(f"{target.count} {target.noun}" for target in targets) or "nothing"


# --- rows ---


def _batch(recipe: Recipe, phrases: _Phrases, rows: Numbers) -> pa.RecordBatch:
    """The rows of these numbers."""
    turns, parts, places = len(recipe.per_prompt), [], []
    for turn, nouns in enumerate(recipe.per_prompt):
        places.append(np.flatnonzero(rows % turns == turn))
        parts.append(_part(recipe, phrases, rows[places[-1]], nouns))
    table = pa.Table.from_batches(parts).take(pa.array(np.argsort(np.concatenate(places))))
    ids = pa.array([f"{row + 1:07d}" for row in rows.tolist()], pa.string())
    columns = [ids, *(column.combine_chunks() for column in table.columns)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _part(recipe: Recipe, phrases: _Phrases, rows: Numbers, nouns: int) -> pa.RecordBatch:
    """Rows with one number of nouns, without their ids."""
    which, counts, other = recipe.digits(nouns).of(rows // len(recipe.per_prompt))
    template, flat = other[:, 0], which * len(phrases.counts) + counts
    wanted = (mixed(rows, (recipe.seed,)) >> np.uint64(63)).astype(bool)
    article = wanted & phrases.takes_article[template[:, None], which].all(1)
    fillings = {
        name: pa.array(phrases.fillings[name], pa.string()).take(pa.array(digits))
        for name, digits in zip(recipe.fillings, other[:, 1:].T, strict=True)
    }
    said = flat + (article * len(phrases.forms))[:, None]
    columns = [
        _prompts(phrases, said, template, fillings),
        _targets(phrases, flat, counts),
        pa.array(phrases.templates, pa.string()).take(pa.array(template)),
        pa.array(np.full(len(rows), nouns), pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(SCHEMA)[1:]))


def _prompts(phrases: _Phrases, said: Numbers, template: Numbers, fillings: Mapping[str, pa.Array]) -> pa.Array:
    """Each template's rows are put together at once; `said` are indices of phrases, [rows, nouns]."""
    texts, places = [], []
    for index, pattern in enumerate(phrases.templates):
        places.append(np.flatnonzero(template == index))
        chosen = pa.array(places[-1])
        opening = phrases.opening if pattern.startswith("{targets}") else phrases.all
        values = {name: array.take(chosen) for name, array in fillings.items()}
        texts.append(_filled(pattern, {"targets": _listed_targets(phrases.all, opening, said[places[-1]]), **values}))
    return pa.concat_arrays(texts).take(pa.array(np.argsort(np.concatenate(places))))


def _filled(pattern: str, values: Mapping[str, pa.Array]) -> pa.Array:
    parts: list[pa.Array | pa.Scalar] = []
    for literal, name, _, _ in string.Formatter().parse(pattern):
        parts.append(pa.scalar(literal, pa.string()))
        if name is not None:
            parts.append(values[name])
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.string()))


def _listed_targets(phrases: pa.Array, opening: pa.Array, said: Numbers) -> pa.Array:
    """`three foxes`, `a cat and two dogs`, `a cat, two dogs and a sheep`."""
    each = [opening.take(pa.array(said[:, 0])), *(phrases.take(pa.array(column)) for column in said.T[1:])]
    if len(each) == 1:
        return each[0]
    before = pc.binary_join_element_wise(*each[:-1], pa.scalar(", ", pa.string()))
    return pc.binary_join_element_wise(before, each[-1], pa.scalar(" and ", pa.string()))


def _targets(phrases: _Phrases, flat: Numbers, counts: Numbers) -> pa.Array:
    rows, nouns = flat.shape
    asked: NDArray[np.int32] = np.array(phrases.counts, np.int32)[counts.ravel()]
    items = pa.StructArray.from_arrays(
        [phrases.forms.take(pa.array(flat.ravel())), pa.array(asked)], fields=list(TARGETS.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * nouns, pa.int32()), items).cast(TARGETS)
