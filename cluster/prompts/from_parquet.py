"""Prompts of Parquet files whose columns have names of their own."""

from collections.abc import Iterator

import pyarrow as pa

from cluster.prompts.columns import cast_batch, decoded, united
from cluster.prompts.files import PromptFile, blocks_of, read_blocks, read_footers
from cluster.prompts.find import find_files
from cluster.prompts.row import python_value
from cluster.prompts.source_rows import SourceRow
from numina.errors import PromptSetError


def read_parquet(path: str) -> Iterator[SourceRow]:
    """A row for each of the files' rows; values that Python hasn't are Arrow's."""
    files, schema = _files(path), parquet_schema(path)
    for block, batch in read_blocks(blocks_of(files, None)):
        columns = cast_batch(batch, schema, block)
        lists = {name: [python_value(own) for own in columns.column(name)] for name in columns.schema.names}
        for offset in range(block.rows):
            values = {name: own[offset] for name, own in lists.items()}
            yield SourceRow(line=block.index + offset, values=values, word="row")


def parquet_schema(path: str) -> pa.Schema:
    """The columns of all files. Raises PromptSetError where their types can't be united."""
    columns = dict[str, pa.Field]()
    for file in _files(path):
        for own in file.schema:
            try:
                columns[own.name] = united(columns.get(own.name, decoded(own)), decoded(own))
            except pa.ArrowException as error:
                told = f"has another type than in the files before it ({error}); write all files with one type"
                raise PromptSetError(f"{file.path}, column {own.name!r}: {told}") from error
    return pa.schema(list(columns.values()))


def _files(path: str) -> list[PromptFile]:
    files = list(read_footers(find_files(path)))
    for file in files:
        if isinstance(file, str):
            raise PromptSetError(file)
    return [file for file in files if isinstance(file, PromptFile)]
