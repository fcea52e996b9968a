"""WebDataset: shards that are tars of `{key}.mp4` and `{key}.json`, the same bytes for the same clips."""

import tarfile
from functools import cache

from cluster.export.columns import json_bytes
from cluster.export.shards import Hashed, Sample

_ZEROS = bytes(tarfile.RECORDSIZE)
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)  # fields of a header


class TarShard:
    """One tar."""

    def __init__(self, stream: Hashed) -> None:
        self._stream = stream

    def add(self, sample: Sample) -> int:
        """Where the video begins."""
        record, key = json_bytes(sample.row), sample.row["key"]
        name = f"{key}.json", f"{key}.mp4"
        head = b"".join((header(name[0], len(record)), record, _padding(record), header(name[1], len(sample.video))))
        self._stream.write(head)
        place = self._stream.size
        self._stream.write(sample.video)
        self._stream.write(_padding(sample.video))
        return place

    def close(self) -> None:
        """The end of an archive: two empty blocks, and what is missing to a whole record."""
        end = 2 * tarfile.BLOCKSIZE
        self._stream.write(_ZEROS[:end])
        self._stream.write(_ZEROS[: -self._stream.size % tarfile.RECORDSIZE])


def header(name: str, size: int) -> bytes:
    """The block before a file of a short name: `tarfile`'s, which takes longer than to read a small video, with another
    name, size and sum."""
    blank, rest = _blank()
    own, length = name.encode(), b"%011o\0" % size
    check = b"%06o\0 " % (rest + sum(own) + sum(length))
    return b"".join(
        (
            own.ljust(_NAME.stop, b"\0"),
            blank[_NAME.stop : _SIZE.start],
            length,
            blank[_SIZE.stop : _SUM.start],
            check,
            blank[_SUM.stop :],
        )
    )


@cache
def _blank() -> tuple[bytes, int]:
    """A header, and the sum of what it has beside name and size; the sum itself counts as spaces."""
    info = tarfile.TarInfo("name")
    info.mode, info.uname, info.gname = 0o444, "numina", "numina"
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[_SUM] = b" " * 8
    return bytes(block), sum(block) - sum(block[_NAME]) - sum(block[_SIZE])


def _padding(data: bytes) -> bytes:
    return _ZEROS[: -len(data) % tarfile.BLOCKSIZE]
