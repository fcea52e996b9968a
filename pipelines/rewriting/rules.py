"""Prompt enhancement by rule: a prompt rewritten so that its counts can't be missed (method.md §6, a baseline).

Two forms: `general` says the counts again in words and in digits after the prompt, and that the objects are separate
and fully visible; `testbed` does so in the words and the length that the embedded counting model was trained on. Pure
functions of text; a form of its own for a language model's answers is none: `keeps_targets` says whether one will do.
"""

import re
from collections.abc import Callable, Sequence
from math import ceil
from pkgutil import resolve_name

from numina.errors import InputError, PromptError
from numina.prompts.nouns import counted, joined, noun_form, singular
from numina.prompts.targets import Target, find_mentions, parse_targets

MAX_TOKENS = 512
"""What Wan's text encoder reads of a prompt."""

_SENTENCE_ENDS = re.compile(r"[.!?…。][\"'”’)]*$")
_PIECES = re.compile(r"\w+|[^\w\s]")


def enhance_prompt(prompt: str, targets: Sequence[Target], rules: str = "general") -> str:
    """The prompt with its counts said unmistakably, by one of RULES; the same again for what is enhanced already.

    The same nouns are found in it, and it asks for the same counts. A prompt with no room left below the text
    encoder's limit gets a shorter form, at last none; one that asks for no count stays as it is. Raises InputError for
    unknown rules.
    """
    if rules not in RULES:
        raise InputError(f"rules {rules!r} aren't known; choose from {', '.join(RULES)}")
    if not targets:
        return prompt
    form: Callable[[str, Sequence[Target]], str] = resolve_name(RULES[rules])
    return form(prompt.strip(), targets)


def keeps_targets(text: str, targets: Sequence[Target]) -> bool:
    """Whether a text mentions every target's noun, and asks for just these counts of them when it is read anew.

    Targets of one head noun ("red balls", "blue balls") are one when they are read, with the sum of their counts.
    """
    asked: dict[str, int] = {}
    for target in targets:
        head = _head(target.noun)
        asked[head] = asked.get(head, 0) + target.count
        try:
            find_mentions(text, target.noun)
        except PromptError:
            return False
    found = {_head(target.noun): target.count for target in parse_targets(text)}
    return all(found.get(head) == count for head, count in asked.items())


def token_bound(text: str) -> int:
    """An estimate of a text's tokens that English stays below: one for each three letters of a word begun, one for
    each mark of punctuation, one for the end."""
    return 1 + sum(ceil(len(piece.encode()) / 3) for piece in _PIECES.findall(text))


def _head(noun: str) -> str:
    return singular(noun.lower().split()[-1])


def general(prompt: str, targets: Sequence[Target]) -> str:
    """The prompt, then the counts; where it speaks of them so that only what comes first is read, the counts first."""
    statements = _statements(targets)
    if any(statement in prompt for statement in statements):
        return prompt
    stop = "" if _SENTENCE_ENDS.search(prompt) else "."
    forms = [f"{prompt}{stop} {statement}" for statement in statements]
    forms += [f"{statement} {prompt}" for statement in statements]
    short = [form for form in forms if token_bound(form) <= MAX_TOKENS]
    return next((form for form in short if keeps_targets(form, targets)), short[0] if short else prompt)


def _statements(targets: Sequence[Target]) -> list[str]:
    """The counts as a sentence, and as a shorter one."""
    said = joined([f"exactly {counted(target.noun, target.count)}" for target in targets])
    said = f"{said[0].upper()}{said[1:]}"
    digits = ", ".join(f"{noun_form(target.noun, target.count)}: {target.count}" for target in targets)
    one = sum(target.count for target in targets) == 1
    apart = "complete" if one else "all of them separate, clearly apart"
    visible = f"{'is' if one else 'are'} in view ({digits}), no more and no fewer"
    return [f"{said} {visible}, {apart} and fully visible from beginning to end.", f"{said}."]


RULES = {"general": "pipelines.rewriting.rules:general", "testbed": "pipelines.testbed.rewriting:repeat_counts"}
