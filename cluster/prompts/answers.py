"""A language model's answers about the rows of a prompt set, kept in a file as they come.

Each is a line of JSON, appended when it is there; what the file has isn't asked again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from cluster.keys import canonical_json
from cluster.prompts.row import PromptRow
from numina.errors import InputError

Record = dict[str, Any]


def answers_path(output: str) -> str:
    """The file beside a set. Raises InputError where the set isn't on a local disk, whose files can grow."""
    if "://" in output:
        raise InputError(f"{output!r} isn't local: answers are kept beside the set as they come; give a local OUT")
    return f"{output}.answers.jsonl"


class Answers:
    """What a model answered so far, and what it answers now: `ask` of a row gives a record.

    `content` is what the record depends on, `columns` are its names. `at_once` conversations are held side by side.
    """

    def __init__(
        self,
        path: str,
        *,
        ask: Callable[[PromptRow], Record],
        content: Callable[[PromptRow], Sequence[Any]],
        columns: Sequence[str],
        at_once: int,
    ) -> None:
        self._path = Path(path)
        self._ask = ask
        self._content = content
        self._columns = columns
        self._at_once = at_once
        self._kept = self._read()

    def of(self, rows: Sequence[PromptRow]) -> list[Record]:
        """The rows' records. What is answered when asking has to stop is kept."""
        names = [self._name(row) for row in rows]
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in self._kept}
        if missing:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as kept, ThreadPoolExecutor(self._at_once) as pool:
                self._ask_all(missing, pool, kept)
        return [self._kept[name] for name in names]

    def _ask_all(self, missing: dict[str, PromptRow], pool: ThreadPoolExecutor, kept: IO[str]) -> None:
        """Never more conversations under way than are held at once, so that a dead endpoint is noticed at once."""
        left, asked = iter(missing.items()), dict[Future[Record], str]()
        stopped: BaseException | None = None
        while True:
            while stopped is None and len(asked) < self._at_once and (one := next(left, None)) is not None:
                asked[pool.submit(self._ask, one[1])] = one[0]
            if not asked:
                break
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                name = asked.pop(future)
                if (error := future.exception()) is not None:
                    stopped = stopped or error
                    continue
                self._kept[name] = future.result()
                kept.write(json.dumps({"row": name, **self._kept[name]}, ensure_ascii=False) + "\n")
                kept.flush()
        os.fsync(kept.fileno())
        if stopped is not None:
            raise stopped

    def _name(self, row: PromptRow) -> str:
        return hashlib.blake2b(canonical_json(self._content(row)).encode(), digest_size=16).hexdigest()

    def _read(self) -> dict[str, Record]:
        """Whole lines; what a killed command left half-written is cut off."""
        if not self._path.is_file():
            return {}
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            return {line["row"]: {name: line[name] for name in self._columns} for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path} can't be read ({error}): correct it, or remove it to ask again") from error
