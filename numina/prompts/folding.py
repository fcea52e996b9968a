"""Text as it is compared: composed (NFC) and case-folded, with the way back to the characters as they were given."""

import re
import unicodedata

# Scripts that are written without spaces between words: Han, kana, Thai, Lao, Burmese, Khmer.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)

Places = list[tuple[int, int]]


def fold(text: str) -> str:
    """Equal for texts that differ only in case or in how their accents are encoded."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def folded(text: str) -> tuple[str, Places | None]:
    """A folded text, and for each of its characters the (start, end) in ``text``; None where offsets are the same."""
    if text.isascii():
        return text.lower(), None
    parts: list[str] = []
    places: Places = []
    start = 0
    while start < len(text):
        end = start + 1
        composed = unicodedata.normalize("NFC", text[start:end])
        while end < len(text) and text[end] > "\u02ff":  # marks and parts of syllables that join what stands before
            more = unicodedata.normalize("NFC", text[start : end + 1])
            if len(more) > len(composed) and not unicodedata.combining(text[end]):
                break
            composed, end = more, end + 1
        part = unicodedata.normalize("NFC", composed.casefold())
        parts.append(part)
        places.extend([(start, end)] * len(part))
        start = end
    return "".join(parts), places
