"""Which of the text encoder's tokens stand for a noun (arXiv 2604.08546 §3.1).

Offsets are a fast tokenizer's: for each token the (start, end) characters of the *cleaned* prompt that it covers;
special and padding tokens cover (0, 0).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numina.errors import PromptError
from numina.prompts.folding import UNSPACED
from numina.prompts.targets import Mention, Target, find_mentions
from numina.prompts.words import Span

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenSpans:
    """Indices of one noun's text tokens, ascending: over all its mentions, of the noun alone and of its phrases."""

    noun: tuple[int, ...]
    phrase: tuple[int, ...]
    first: tuple[int, ...]  # of the noun's first mention alone


def locate_tokens(
    prompt: str, targets: Sequence[Target], offsets: Offsets, clean: Callable[[str], str] = str
) -> tuple[TokenSpans, ...]:
    """Tokens of each target in the text encoder's sequence, every mention kept.

    ``prompt`` must be the text that was tokenized, ``clean`` what was done to the prompt before: nouns are looked for
    as it leaves them. A token that holds more than a noun (``三只猫`` in one piece) is the noun's. One that also holds
    characters of another target's noun (``猫狗``) is neither's: attention to it can't be told apart.

    Raises :class:`PromptError` where a noun isn't in the prompt, has no token of its own, or a mention of it was cut
    off because the prompt is longer than the encoder's sequence.
    """
    offsets = _without_start(offsets)
    found = [find_mentions(prompt, clean(target.noun)) for target in targets]
    mentions = [_apart(prompt, own, found) for own in found]
    for target, own in zip(targets, mentions, strict=True):
        for mention in own:
            _check_covered(prompt, target.noun, mention, offsets)
    return tuple(
        _locate(
            prompt, target, own, [mention.noun for other in mentions if other is not own for mention in other], offsets
        )
        for target, own in zip(targets, mentions, strict=True)
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


def _locate(
    prompt: str, target: Target, mentions: Sequence[Mention], others: Sequence[Span], offsets: Offsets
) -> TokenSpans:
    """``others`` are the places of the other targets' nouns."""
    nouns = [mention.noun for mention in mentions]
    apart = [span for span in others if not any(_overlap(span, noun) for noun in nouns)]
    joined = {*_covering(offsets, nouns)} & {*_covering(offsets, apart)}

    def own(spans: Sequence[Span]) -> tuple[int, ...]:
        return tuple(token for token in _covering(offsets, spans) if token not in joined)

    if not (tokens := own(nouns)):
        start, end = offsets[min(joined)]
        raise PromptError(
            f"noun {target.noun!r} of prompt {prompt!r} is in one token with another noun, {prompt[start:end]!r}, so"
            " that they can't be told apart: write a space or a comma between them"
        )
    return TokenSpans(
        noun=tokens,
        phrase=own([mention.phrase for mention in mentions]),
        first=next(filter(None, (own([noun]) for noun in nouns))),
    )


def _without_start(offsets: Offsets) -> Offsets:
    """Without the mark that SentencePiece writes before a text's first word (``▁``) where it is a token by itself: it
    stands for the first character too, as the token after it does, but is no part of the word."""
    first = next((i for i, (start, end) in enumerate(offsets) if start < end), None)
    if first is None or first + 1 >= len(offsets) or offsets[first + 1][0] != offsets[first][0]:
        return offsets
    after = offsets[first + 1]
    return [*offsets[:first], (0, 0), *offsets[first + 1 :]] if after[0] < after[1] else offsets


def _covering(offsets: Offsets, spans: Sequence[Span]) -> tuple[int, ...]:
    """Tokens that share a character with any of the spans."""
    return tuple(i for i, token in enumerate(offsets) if any(_overlap(token, span) for span in spans))


def _overlap(one: Span, other: Span) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


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
