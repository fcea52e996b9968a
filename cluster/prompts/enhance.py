"""Prompt sets with a column of enhanced prompts: by rule, or by a language model whose answers are kept as they come.

OUT                    the set with `enhanced_prompt`, and `enhanced_by`: endpoint, local, rules or testbed
OUT.answers.jsonl      each answer of a model, appended when it is there; what it has isn't asked again
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.keys import canonical_json
from cluster.prompts.check import require_prompts
from cluster.prompts.promptset import PromptSet, open_prompts
from cluster.prompts.row import ENHANCED, PromptRow, RawRow
from cluster.prompts.write import set_schema, write_set
from numina.errors import InputError
from pipelines.rewriting.llm import INSTRUCTIONS, Writer, rewritten
from pipelines.rewriting.rules import enhance_prompt

ENHANCED_BY = "enhanced_by"

Enhanced = tuple[str, str]
"""A prompt, and what wrote it."""
Report = Callable[[int, int], None]


def enhance_set(
    source: str,
    output: str,
    *,
    rules: str = "general",
    writer: Writer | None = None,
    at_once: int = 8,
    max_count: int = 20,
    force: bool = False,
    report: Report = lambda done, total: None,
) -> dict[str, int]:
    """Write a set with its prompts enhanced by `rules`, or by a language model; how many rows each wrote.

    `at_once` conversations are held side by side. Raises PromptSetError when the set has problems, NuminaError when
    the model can't be asked any more: what was answered is kept, the same call goes on.
    """
    rows = require_prompts(source, max_count)
    prompts = open_prompts(source)
    by: dict[str, int] = {}
    batches = _enhanced(
        prompts, _writer(rules, writer, output, at_once), max_count, by, lambda done: report(done, rows)
    )
    write_set(output, _schema(prompts), batches, force=force)
    return by


def _writer(
    rules: str, writer: Writer | None, output: str, at_once: int
) -> Callable[[Sequence[PromptRow]], list[Enhanced]]:
    if writer is None:
        name = "rules" if rules == "general" else rules
        return lambda rows: [(enhance_prompt(row.prompt, row.targets, rules), name) for row in rows]
    return Answers(f"{output}.answers.jsonl", writer, at_once).of


def _enhanced(
    prompts: PromptSet,
    write: Callable[[Sequence[PromptRow]], list[Enhanced]],
    max_count: int,
    by: dict[str, int],
    report: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    done = 0
    schema = _schema(prompts)
    for block, batch in prompts.read():
        rows = [prompts.row(RawRow(block, batch, offset), max_count) for offset in range(block.rows)]
        written = write(rows)
        texts, names = zip(*written, strict=True)
        for name in names:
            by[name] = by.get(name, 0) + 1
        table = pa.Table.from_batches([batch]).select([name for name in batch.schema.names if name not in _ADDED])
        table = table.append_column(ENHANCED, pa.array(texts)).append_column(ENHANCED_BY, pa.array(names))
        whole = pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names)
        done += len(rows)
        report(done)
        yield from whole.cast(schema).combine_chunks().to_batches()


_ADDED = (ENHANCED, ENHANCED_BY)


def _schema(prompts: PromptSet) -> pa.Schema:
    return pa.schema([*set_schema(prompts, _ADDED), *(pa.field(name, pa.string()) for name in _ADDED)])


class Answers:
    """What a model answered so far, in a file beside the output, and what it answers now."""

    def __init__(self, path: str, writer: Writer, at_once: int) -> None:
        if "://" in path:
            raise InputError(f"{path!r} isn't local: answers are kept beside the set as they come; give a local OUT")
        self._path = Path(path)
        self._writer = writer
        self._at_once = at_once
        self._kept = self._read()

    def of(self, rows: Sequence[PromptRow]) -> list[Enhanced]:
        """The rows' enhanced prompts. What is answered when asking has to stop is kept."""
        names = [self._name(row) for row in rows]
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in self._kept}
        if missing:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as kept, ThreadPoolExecutor(self._at_once) as pool:
                self._ask(missing, pool, kept)
        return [self._kept[name] for name in names]

    def _ask(self, missing: dict[str, PromptRow], pool: ThreadPoolExecutor, kept: Any) -> None:
        """Never more conversations under way than are held at once, so that a dead endpoint is noticed at once."""
        left, asked = iter(missing.items()), dict[Future[Enhanced], str]()
        stopped: BaseException | None = None
        while True:
            while stopped is None and len(asked) < self._at_once and (one := next(left, None)) is not None:
                asked[pool.submit(rewritten, self._writer, one[1].prompt, one[1].targets)] = one[0]
            if not asked:
                break
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                name = asked.pop(future)
                if (error := future.exception()) is not None:
                    stopped = stopped or error
                    continue
                self._kept[name] = future.result()
                kept.write(_line(name, self._kept[name]))
                kept.flush()
        os.fsync(kept.fileno())
        if stopped is not None:
            raise stopped

    def _name(self, row: PromptRow) -> str:
        """What an answer depends on."""
        targets = [[target.noun, target.count] for target in row.targets]
        content = canonical_json([row.prompt, targets, self._writer.name, self._writer.model, INSTRUCTIONS])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _read(self) -> dict[str, Enhanced]:
        """Whole lines; what a killed command left half-written is cut off."""
        if not self._path.is_file():
            return {}
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            return {line["row"]: (line["enhanced_prompt"], line["enhanced_by"]) for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path} can't be read ({error}): correct it, or remove it to ask again") from error


def _line(name: str, enhanced: Enhanced) -> str:
    return json.dumps({"row": name, ENHANCED: enhanced[0], ENHANCED_BY: enhanced[1]}, ensure_ascii=False) + "\n"
