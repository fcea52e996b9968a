"""WebDataset: shards that are tars of `{key}.mp4` and `{key}.json`, the same bytes for the same clips."""

import json
import tarfile

from cluster.export.shards import Hashed, Sample

_RECORD = bytes(tarfile.RECORDSIZE)


class TarShard:
    """One tar."""

    def __init__(self, stream: Hashed) -> None:
        self._stream = stream

    def add(self, sample: Sample) -> int:
        """Where the video begins."""
        key = sample.row["key"]
        record = json.dumps(sample.row, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
        self._member(f"{key}.json", record)
        return self._member(f"{key}.mp4", sample.video)

    def close(self) -> None:
        """The end of an archive: two empty blocks, and what is missing to a whole record."""
        end = self._stream.size + 2 * tarfile.BLOCKSIZE
        self._stream.write(_RECORD[: 2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE])

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        info.uname = info.gname = "numina"
        self._stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        place = self._stream.size
        self._stream.write(data)
        self._stream.write(_RECORD[: -len(data) % tarfile.BLOCKSIZE])
        return place
