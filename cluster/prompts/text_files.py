"""Text as people save it: UTF-8 or UTF-16, with any line ends, with or without a byte order mark, also compressed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec

from numina.errors import PromptSetError

HEAD_BYTES = 1 << 16

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BINARY = {
    b"PK\x03\x04": "is a spreadsheet or a zip archive; save its table as csv, or unpack it",
    b"\xd0\xcf\x11\xe0": "is an old Office file; save its table as csv",
    b"%PDF": "is a PDF; copy its prompts into a text file, one a line",
    b"SQLite": "is a database; export its table as csv",
    b"\x80\x04\x95": "is a Python pickle, which can run code and isn't read; write it as jsonl",
    b"ARROW1": "is an Arrow file; write it as Parquet",
}
_BLANK = " \t\r\n\v\f\ufeff\u200b\xa0"


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """How a file's bytes become text."""

    path: str
    compression: str | None
    encoding: str
    head: bytes  # uncompressed

    @property
    def head_text(self) -> str:
        """The first lines; the last one may be cut off."""
        return self.head.decode(self.encoding, "ignore")

    @property
    def is_parquet(self) -> bool:
        """Whether it is no text but Parquet."""
        return self.head.startswith(b"PAR1")

    @contextmanager
    def open(self) -> Iterator[io.TextIOWrapper]:
        """Its text with its line ends as they are. Bytes that aren't UTF-8 are lone surrogates."""
        errors = "surrogateescape" if self.encoding.startswith("utf-8") else "strict"
        with fsspec.open(self.path, "rb", compression=self.compression) as stream:
            yield io.TextIOWrapper(stream, self.encoding, errors=errors, newline="")


def look_at(path: str) -> TextFile:
    """What a file's first bytes say. Raises PromptSetError for what is no text."""
    with fsspec.open(path, "rb") as stream:
        compression = _magic(stream.read(8))
    with fsspec.open(path, "rb", compression=compression) as stream:
        head = stream.read(HEAD_BYTES)
    for magic, told in _BINARY.items():
        if head.startswith(magic):
            raise PromptSetError(f"source {path!r} {told}")
    encoding = _encoding(head)
    if encoding == "utf-8-sig" and b"\0" in head and not head.startswith(b"PAR1"):
        raise PromptSetError(f"source {path!r} is no text; give a txt, csv, tsv, json, jsonl or Parquet file")
    return TextFile(path=path, compression=compression, encoding=encoding, head=head)


def _magic(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def _encoding(head: bytes) -> str:
    """By the byte order mark or, without one, by where the zeros of ASCII letters are."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    pairs = len(head) // 2
    if pairs and head[1::2].count(0) > pairs // 2:
        return "utf-16-le"
    if pairs and head[::2].count(0) > pairs // 2:
        return "utf-16-be"
    return "utf-8-sig"


def read_lines(path: str) -> Iterator[tuple[int, str, str | None]]:
    """Each line with its number, without blanks around it, and what is wrong with it; none that are blank at the
    end."""
    blank = list[tuple[int, str, str | None]]()
    with look_at(path).open() as stream:
        stream.reconfigure(newline=None)
        for number, line in enumerate(stream, start=1):
            text = line.strip(_BLANK)
            if not text:
                blank.append((number, text, None))
                continue
            yield from blank
            blank.clear()
            yield (number, text, None) if is_text(text) else (number, repr(shown(text)), "isn't UTF-8")


def is_text(text: str) -> bool:
    """Whether all of a text was UTF-8."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def shown(text: str) -> str | bytes:
    """A text, or its bytes where these weren't all UTF-8."""
    return text if is_text(text) else text.encode("utf-8", "surrogateescape")
