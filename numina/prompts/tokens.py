"""Which of the text encoder's tokens stand for a noun (arXiv 2604.08546 §3.1).

Offsets are a fast tokenizer's: for each token the (start, end) characters of the *cleaned* prompt that it covers;
special and padding tokens cover (0, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from numina.errors import PromptError
from numina.prompts.folding import UNSPACED
from numina.prompts.targets import Mention, Target, find_mentions

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenSpans:
    """Indices of one noun's text tokens, ascending: over all its mentions, of the noun alone and of its phrases."""

    noun: tuple[int, ...]
    phrase: tuple[int, ...]
    first: tuple[int, ...]  # of the noun's first mention alone


def locate_tokens(prompt: str, targets: Sequence[Target], offsets: Offsets) -> tuple[TokenSpans, ...]:
    """Tokens of each target in the text encoder's sequence, every mention kept.

    ``prompt`` must be the text that was tokenized. Raises :class:`PromptError` where a noun isn't in the prompt, or a
    mention of it was cut off because the prompt is longer than the encoder's sequence.
    """
    found = [find_mentions(prompt, target.noun) for target in targets]
    return tuple(
        _locate(prompt, target, _apart(prompt, mentions, found), offsets)
        for target, mentions in zip(targets, found, strict=True)
    )


def _apart(prompt: str, mentions: Sequence[Mention], all_found: Sequence[Sequence[Mention]]) -> Sequence[Mention]:
    """Mentions that aren't part of another target's longer noun, in scripts without spaces (猫 in 熊猫)."""
    if prompt.isascii():
        return mentions
    longer = [other.noun for found in all_found if found is not mentions for other in found]
    apart = [
        mention
        for mention in mentions
        if not UNSPACED.match(prompt[mention.noun[0]])
        or not any(a <= mention.noun[0] and mention.noun[1] <= b and (a, b) != mention.noun for a, b in longer)
    ]
    return apart or mentions


def _locate(prompt: str, target: Target, mentions: Sequence[Mention], offsets: Offsets) -> TokenSpans:
    for mention in mentions:
        _check_covered(prompt, target.noun, mention, offsets)
    return TokenSpans(
        noun=_covering(offsets, [mention.noun for mention in mentions]),
        phrase=_covering(offsets, [mention.phrase for mention in mentions]),
        first=_covering(offsets, [mention.noun for mention in mentions[:1]]),
    )


def _covering(offsets: Offsets, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Tokens that share a character with any of the spans."""
    return tuple(i for i, (a, b) in enumerate(offsets) if any(max(a, start) < min(b, end) for start, end in spans))


def _check_covered(prompt: str, noun: str, mention: Mention, offsets: Offsets) -> None:
    start, end = mention.noun
    reached = max((stop for _, stop in offsets), default=0)
    if reached < end:
        raise PromptError(
            f"noun {noun!r} at character {start} is cut off: the text encoder's {len(offsets)} tokens end at character"
            f" {reached} of prompt {prompt[:60]!r}…; shorten the prompt"
        )
    if not _covering(offsets, [mention.noun]):
        raise PromptError(
            f"noun {noun!r} at character {start} of prompt {prompt!r} has no token: use the offsets of this prompt"
        )
