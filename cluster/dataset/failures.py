"""Records of failed attempts: `failures/{key}/{attempt}.json`."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from cluster.dataset.run_record import json_bytes, read_json
from cluster.dataset.segments import checked, is_key
from cluster.storage.protocol import Files


class Failures:
    """The failures of one output."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def add(self, key: str, record: Mapping[str, Any]) -> str:
        """Keep the record of one failed attempt; its file name."""
        content = json_bytes({"failed_at": datetime.now(UTC).isoformat(), **record})
        folder = f"failures/{checked(key)}"
        attempt = max(self._attempts(key), default=0) + 1
        while not self._files.create(f"{folder}/{attempt}.json", content):
            attempt += 1
        return f"{folder}/{attempt}.json"

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """The records of all failed attempts by key, in the order of the attempts."""
        keys = self._keys()
        with ThreadPoolExecutor(self._files.readers) as readers:
            return dict(zip(keys, readers.map(self._records, keys), strict=True))

    def final(self, committed: Collection[bytes]) -> dict[str, dict[str, Any]]:
        """The last record of each key that was given up and isn't among those committed."""
        keys = [key for key in self._keys() if bytes.fromhex(key) not in committed]
        with ThreadPoolExecutor(self._files.readers) as readers:
            last = dict(zip(keys, readers.map(self._last, keys), strict=True))
        return {key: record for key, record in last.items() if record is not None and record.get("final", True)}

    def _keys(self) -> list[str]:
        return sorted(filter(is_key, self._files.names("failures")))

    def _attempts(self, key: str) -> list[int]:
        numbers = [name.removesuffix(".json") for name in self._files.names(f"failures/{key}")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _records(self, key: str) -> list[dict[str, Any]]:
        return [self._read(key, attempt) for attempt in self._attempts(key)]

    def _last(self, key: str) -> dict[str, Any] | None:
        attempts = self._attempts(key)
        return self._read(key, attempts[-1]) if attempts else None

    def _read(self, key: str, attempt: int) -> dict[str, Any]:
        return read_json(self._files, f"failures/{key}/{attempt}.json", "remove it, and the key is tried again")
