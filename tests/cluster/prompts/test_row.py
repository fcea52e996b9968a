"""What the text of a row promises: equal for equal rows as they are given, and for no others."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.prompts.row import OWN_SCHEMA, row_texts

TEXT = st.none() | st.text(st.characters(codec="utf-8"), max_size=3) | st.sampled_from(["", "-", "1:a", ",", "0:,"])
GIVEN = st.none() | st.lists(st.fixed_dictionaries({"noun": TEXT, "count": st.none() | st.integers(0, 12)}), max_size=2)
RAW = st.fixed_dictionaries(
    {"id": TEXT, "prompt": TEXT, "targets": GIVEN, "negative_prompt": TEXT, "seed": st.none() | st.integers(0, 12)}
)


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(RAW, min_size=1, max_size=8))
def test_rows_have_equal_texts_only_where_they_are_equal(rows: list[dict[str, Any]]) -> None:
    """No value can pass for a separator, for null or for its neighbour; neither place nor neighbours matter."""
    batch = pa.RecordBatch.from_pylist(rows, schema=OWN_SCHEMA)
    texts = row_texts(batch)
    for text, row in zip(texts, rows, strict=True):
        assert [text == other for other in texts] == [row == other for other in rows]
        assert row_texts(pa.RecordBatch.from_pylist([row], schema=OWN_SCHEMA)) == [text]
    assert row_texts(batch.slice(len(rows) // 2)) == texts[len(rows) // 2 :]
    assert row_texts(batch.take(pa.array(np.arange(len(rows))[::-1].copy()))) == texts[::-1]


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("integer", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64()])
@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list, lambda item: pa.list_(item, 1)])
def test_texts_do_not_depend_on_types(text: Any, integer: Any, make_list: Any) -> None:
    """A set that was written again by another tool is the same set; columns of nulls are as good as none."""
    plain = {"id": "a", "prompt": "zwölf Katzen", "targets": [{"noun": "Katzen", "count": 12}], "seed": 7}
    noun = pa.string() if pa.types.is_dictionary(text) else text
    item = pa.struct([("count", integer), ("noun", noun), ("colour", pa.string())])
    batch = pa.record_batch(
        {
            "seed": pa.array([7], integer),
            "targets": pa.array([[{"noun": "Katzen", "count": 12}]], make_list(item)),
            "negative_prompt": pa.nulls(1),
            "prompt": pa.array(["zwölf Katzen"]).cast(text),
            "id": pa.array(["a"]).cast(text),
            "other": pa.array([1]),
        }
    )
    assert row_texts(batch) == row_texts(pa.RecordBatch.from_pylist([plain], schema=OWN_SCHEMA))
