"""Targets read from prompts by a language model. An answer is used only if it holds nouns of the prompt and counts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numina.errors import NuminaError, PromptError
from numina.prompts.nouns import singular
from numina.prompts.targets import Target, check_targets
from pipelines.rewriting.llm import TRIES, Message, Writer, without_thoughts

INSTRUCTIONS = (
    "You read prompts for a text-to-video model and say which objects the prompt asks for in an exact number. For "
    "every such kind of object give the noun, copied letter by letter from the prompt without its adjectives, and the "
    'whole number. "A dog" and "another dog" count as one each. Add up the counts of one noun. Leave out sizes, times, '
    "years, names, bounds such as more than three, fractions, scenery, and things that can't be counted. Answer with "
    'JSON alone: {"targets": [{"noun": "cats", "count": 3}]}, or {"targets": []} if the prompt asks for no number.'
)

_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_LONGEST_TOLD = 200


@dataclass(frozen=True)
class Answer:
    """What a model says of a prompt."""

    targets: tuple[Target, ...] | None  # None: it gave no answer that can be used
    told: str = ""  # then, what is wrong with it


def asked_targets(writer: Writer, prompt: str, max_count: int) -> Answer:
    """The targets of a prompt as a language model reads them; after a wrong answer it is asked once more."""
    messages: list[Message] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": f"Prompt: {prompt}"},
    ]
    told = ""
    for _ in range(TRIES):
        try:
            text = without_thoughts(writer.answer(messages)).strip()
        except ValueError as error:
            if isinstance(error, NuminaError):
                raise
            return Answer(None, str(error)[:_LONGEST_TOLD])
        try:
            return Answer(read_answer(text, prompt, max_count))
        except ValueError as error:
            told = str(error)[:_LONGEST_TOLD]
        again = f"That can't be used: {told}. Answer again with JSON alone, in the form of the instructions."
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
    return Answer(None, told)


def read_answer(text: str, prompt: str, max_count: int) -> tuple[Target, ...]:
    """An answer's targets. Raises ValueError unless all nouns are in the prompt, and all counts whole and in range."""
    try:
        answer = json.loads(_FENCE.sub("", text.strip()))
    except (ValueError, RecursionError):
        answer = _embedded(text)
    items = answer.get("targets") if isinstance(answer, dict) else answer
    if not isinstance(items, list):
        raise ValueError("the answer isn't JSON with a list of targets")
    targets = tuple(_target(item, max_count) for item in items)
    if targets:
        try:
            check_targets(prompt, targets, max_count=max_count)
        except PromptError as error:
            raise ValueError(str(error)) from None
    return targets


def _embedded(text: str) -> Any:
    """The one object of JSON within a text."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        return None


def _target(item: Any, max_count: int) -> Target:
    if not isinstance(item, dict) or not isinstance(item.get("noun"), str) or not item["noun"].strip():
        raise ValueError(f"{json.dumps(item)[:80]} has no noun")
    count = item.get("count")
    if type(count) is not int or not 1 <= count <= max_count:
        raise ValueError(
            f"the count {json.dumps(count)[:40]} of {item['noun']!r} is no whole number from 1 to {max_count}"
        )
    return Target(noun=item["noun"].strip(), count=count)


def same_targets(one: Sequence[Target], other: Sequence[Target]) -> bool:
    """Whether two readings ask for the same counts of the same nouns, in any order and number."""
    return _counts(one) == _counts(other)


def _counts(targets: Sequence[Target]) -> dict[str, int]:
    return {singular(target.noun.lower().split()[-1]): target.count for target in targets}
