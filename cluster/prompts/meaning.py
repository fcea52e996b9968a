"""What the columns of a source mean: which holds the prompts, which the targets, and what the others are called."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cluster.prompts.problems import RowProblem
from cluster.prompts.row import ENHANCED, OWN_SCHEMA
from cluster.prompts.source_rows import (
    COUNT_KEYS,
    COUNT_LISTS,
    NOUN_KEYS,
    NOUN_LISTS,
    SourceRow,
    checked_pairs,
    half_letter,
    line_id,
    paired,
    read_targets,
    said,
)
from cluster.rows import ROW_SCHEMA
from numina.errors import PromptError, PromptSetError
from numina.prompts.targets import find_mentions

PROMPT_NAMES = (
    *("prompt", "text", "caption", "prompt_en", "en_prompt", "text_prompt", "prompt_text", "text_en", "caption_en"),
    *("prompts", "texts", "captions", "english_prompt", "prompt_english", "english", "en", "video_prompt"),
    *("t2v_prompt", "user_prompt", "input_prompt", "short_prompt", "long_prompt", "refined_prompt"),
    *("augmented_prompt", "video_caption", "video_description", "description", "sentence", "instruction"),
)
"""Names of a column of prompts, the surest first; capitals, spaces and hyphens don't matter."""

_OWN_NAMES = ("id", "targets", "negative_prompt", "seed", ENHANCED)
_COUNT_MAPS = ("include", "object_counts", "noun_counts", "target_counts", "counts", "objects", "nouns", "entities")
_SAMPLED = 1000  # rows, to see what a column holds
_MENTIONED = 0.5  # of the rows, at least, whose prompt has the noun of a column that may be anything
_DEEPEST = 32  # lists and objects in one another: Parquet's readers end at some depth
_TAKEN = {*ROW_SCHEMA.names, *OWN_SCHEMA.names}


def normal(name: str) -> str:
    """`Prompt EN` as `prompt_en`."""
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())


def is_prompt_name(name: str) -> bool:
    """Whether a column of this name holds prompts."""
    return normal(name) in PROMPT_NAMES


def is_known_name(name: str) -> bool:
    """Whether it is the name of a column that means something here."""
    return is_prompt_name(name) or normal(name) in _OWN_NAMES


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user says about a source's columns."""

    prompt: str | None = None  # the column with the prompts; None: guessed
    keep: tuple[str, ...] | None = None  # of the others, those to carry; None: all
    drop: tuple[str, ...] = ()

    def check(self, path: str, names: Collection[str]) -> None:
        """Raises PromptSetError for a column that the source doesn't have."""
        for option, given in (("--keep", self.keep or ()), ("--drop", self.drop)):
            if missing := [name for name in given if name not in names]:
                raise PromptSetError(f"{option} {missing[0]!r}: {path} has no such column; it has {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The meaning of a source's columns. Made of its first rows, it holds for all."""

    path: str
    choice: Choice
    prompt: str
    own: dict[str, str]  # `id`, `negative_prompt`, … by the source's names
    targets: Callable[[Mapping[str, Any]], Any] | None  # of a row's values; raises ValueError
    notes: list[str]
    _names: dict[str, str | None] = field(default_factory=dict)

    def take(self, row: SourceRow) -> None:
        """Puts a row's values under the names that they have in a set. Adds to its problems."""
        given = row.values
        if trouble := next(
            ((name, told) for name, own in given.items() if (told := half_letter(name) or half_letter(own))), None
        ):
            name, told = trouble
            remedy = "write the text anew"
            row.problems.append(said(self.path, row.line, given[name], told, remedy, column=name, word=row.word))
            return
        prompt = self._prompt_of(given)
        values = {"prompt": _nothing(given.get(prompt)), **dict.fromkeys(("id", "targets", "negative_prompt", "seed"))}
        for name, value in given.items():
            if name != prompt and (column := self.name_of(name)) is not None:
                values[column] = _nothing(value) if column in values else value
        values["targets"] = None
        row.values = values
        row.problems += self._converted(row, given)

    def _prompt_of(self, given: Mapping[str, Any]) -> str:
        """The column of a row's prompt: a row may have another than the first rows."""
        if self.choice.prompt is not None or _nothing(given.get(self.prompt)) is not None:
            return self.prompt
        names = (name for name, own in given.items() if is_prompt_name(name) and isinstance(own, str))
        return next(names, self.prompt)

    def name_of(self, name: str) -> str | None:
        """What a column of the source is called in the set; None for one that isn't carried."""
        if name not in self._names:
            self._names[name] = self._name(name)
        return self._names[name]

    def _name(self, name: str) -> str | None:
        if name == self.prompt or name in self.choice.drop:
            return None
        if name in self.own:
            return self.own[name]
        if self.choice.keep is not None and name not in self.choice.keep:
            return None
        if name.strip() in _TAKEN or not name.strip():
            new = f"source_{name.strip() or 'column'}"
            self.notes.append(f"{self.path}: column {name!r} is carried as {new!r}: the output has one of its name")
            return new
        return name

    def _converted(self, row: SourceRow, given: Mapping[str, Any]) -> Iterator[RowProblem]:
        values = row.values

        def problem(column: str, value: Any, trouble: str) -> RowProblem:
            told, _, remedy = trouble.rpartition("; ")
            rule = re.sub(r" ?\([^()]*\)", "", told) if column != "targets" else "targets can't be read"
            return said(self.path, row.line, value, rule, remedy, column=column, detail=told, word=row.word)

        for own in ("prompt", "negative_prompt", ENHANCED):
            if not isinstance(values.get(own), str | None):
                yield problem(own, values[own], "is no text; write a string")
        values["id"] = _id(values["id"]) or line_id(row.line)
        if self.targets is not None:
            try:
                values["targets"] = self.targets(given)
            except ValueError as error:
                yield problem("targets", [given.get(name) for name in _shown(given)], str(error))
        try:
            values["seed"] = _seed(values["seed"])
        except (TypeError, ValueError):
            remedy = "write a whole number from 0 to 2**63 - 1, or leave it out"
            yield problem("seed", values["seed"], f"is no seed; {remedy}")
            values["seed"] = None


def _shown(given: Mapping[str, Any]) -> list[str]:
    known = ("targets", *_COUNT_MAPS, *NOUN_KEYS, *COUNT_KEYS, *NOUN_LISTS, *COUNT_LISTS)
    return [name for name in given if normal(name) in known]


def _nothing(value: Any) -> Any:
    """None for what pandas writes where there is nothing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    seed = int(float(value)) if isinstance(value, str) and re.fullmatch(r"\d+\.0+", value.strip()) else int(value)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(value)
    return seed


# --- guesses ---


def meaning_of(path: str, rows: Sequence[SourceRow], choice: Choice) -> Meaning:
    """What the columns of a source mean, by its first rows. Raises PromptSetError where no column has prompts."""
    rows = [row for row in rows if not row.problems][:_SAMPLED]
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    prompt, notes = _prompt_column(path, rows, names, choice)
    own = dict[str, str]()
    for name in names:
        meant = normal(name)
        taken = meant in own.values() or (meant != name and meant in names)
        if meant in _OWN_NAMES and not taken and name != prompt and name not in choice.drop:
            own[name] = meant
    targets, told = _target_columns(rows, names, own, prompt, choice)
    notes += [f"{path}: {told}"] if told else []
    return Meaning(path=path, choice=choice, prompt=prompt, own=own, targets=targets, notes=notes)


def _prompt_column(path: str, rows: Sequence[SourceRow], names: Sequence[str], choice: Choice) -> tuple[str, list[str]]:
    if choice.prompt is not None:
        if choice.prompt not in names:
            raise PromptSetError(
                f"--prompt-column {choice.prompt!r}: {path} has no such column; it has {', '.join(names)}"
            )
        return choice.prompt, []
    texts = [name for name in names if any(isinstance(row.values.get(name), str) for row in rows)]
    if not rows or "prompt" in texts:
        return "prompt", []
    known = sorted((name for name in texts if is_prompt_name(name)), key=lambda name: PROMPT_NAMES.index(normal(name)))
    likely = [name for name in texts if normal(name) not in _OWN_NAMES and _may_be_prompts(name, rows)]
    named = [name for name in likely if re.search("prompt|caption", normal(name))]
    for found in (known, named if len(named) == 1 else [], likely if len(likely) == 1 else []):
        if found:
            return found[0], [f"{path}: column {found[0]!r} is taken as the prompt; --prompt-column takes another"]
    raise PromptSetError(
        f"{path}: no column is known as the prompt's (it has {', '.join(names)}); name it with --prompt-column (a file "
        "of one prompt a line is a txt)"
    )


def _may_be_prompts(name: str, rows: Sequence[SourceRow]) -> bool:
    """Whether most of a column are texts of several words."""
    values = [value for row in rows if (value := row.values.get(name)) is not None]
    return sum(isinstance(value, str) and len(value.split()) > 1 for value in values) * 2 > len(values)


_Read = Callable[[Mapping[str, Any]], Any]


def _target_columns(
    rows: Sequence[SourceRow], names: Sequence[str], own: Mapping[str, str], prompt: str, choice: Choice
) -> tuple[_Read | None, str]:
    """What reads the targets of a row, and what to say about it where columns were guessed."""
    given = next((name for name, meant in own.items() if meant == "targets"), None)
    if given is not None:
        return lambda values: None if _is_empty(values.get(given)) else read_targets(values[given]), ""
    free = {normal(name): name for name in names if name != prompt and name not in choice.drop}
    for meant in _COUNT_MAPS:
        if (name := free.get(meant)) is not None and _holds(rows, _map_reader(name)):
            return _map_reader(name), f"column {name!r} is read as the targets; --drop {name} leaves it out"
    for noun_name, count_name in _pairs_of(free):
        read = _pair_reader(noun_name, count_name)
        if _holds(rows, read) and _are_mentioned(rows, read, prompt):
            told = f"columns {noun_name!r} and {count_name!r} are read as the targets"
            return read, f"{told}; --drop {noun_name} leaves them out"
    return None, ""


def _pairs_of(free: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for nouns, counts in ((NOUN_LISTS, COUNT_LISTS), (NOUN_KEYS, COUNT_KEYS), (NOUN_LISTS, COUNT_KEYS)):
        for noun in nouns:
            for count in counts:
                if noun in free and count in free:
                    yield free[noun], free[count]


def _map_reader(name: str) -> _Read:
    def read(values: Mapping[str, Any]) -> Any:
        value = values.get(name)
        if _is_empty(value) or value in ({}, []):
            return None
        if isinstance(value, str) and not value.strip().startswith(("{", "[")):
            raise ValueError('holds no mapping of counts; write {"cats": 3}')
        return read_targets(value)

    return read


def _pair_reader(noun_name: str, count_name: str) -> _Read:
    def read(values: Mapping[str, Any]) -> Any:
        nouns, counts = values.get(noun_name), values.get(count_name)
        if _is_empty(nouns) and _is_empty(counts):
            return None
        return checked_pairs(paired(nouns, counts))

    return read


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _holds(rows: Iterable[SourceRow], read: _Read) -> bool:
    """Whether all rows that have something there have targets, and some have."""
    found = False
    for row in rows:
        try:
            found |= bool(read(row.values))
        except (ValueError, TypeError):
            return False
    return found


def _are_mentioned(rows: Sequence[SourceRow], read: _Read, prompt: str) -> bool:
    """Whether the prompts have the nouns: then the columns are about them."""
    seen = mentioned = 0
    for row in rows[:100]:
        for target in read(row.values) or []:
            seen += 1
            try:
                find_mentions(str(row.values.get(prompt)), target["noun"])
                mentioned += 1
            except PromptError:
                pass
    return mentioned >= _MENTIONED * seen > 0


# --- other columns ---


def is_unfit(value: Any, depth: int = 0) -> bool:
    """Whether a column of Arrow can't hold a value: it is nested too deep, or beyond 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return not -(2**63) <= value < 2**63
    if isinstance(value, dict):
        return depth > _DEEPEST or not value or any(is_unfit(own, depth + 1) for own in value.values())
    return isinstance(value, list) and (depth > _DEEPEST or any(is_unfit(own, depth + 1) for own in value))


def wide(type: pa.DataType, most: int = 64) -> bool:
    """Whether a struct has so many fields that they are values rather than names."""
    fields = [type.field(place).type for place in range(type.num_fields)]
    return (pa.types.is_struct(type) and len(fields) > most) or any(wide(own, most) for own in fields)
