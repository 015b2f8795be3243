"""Vocabularies: which text gets which row of an embedding table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.arrays import as_array
from gemkit.data.columns import Codes


def make_vocabulary(parts: Iterable[tuple[Codes, np.ndarray]], min_count: int) -> pa.Table:
    """Counts values over all columns that share an id space, most frequent first, equals in order of text.

    Args:
        parts: A column, and which of its entries (a boolean mask) belong to the training split.

    Returns:
        Columns `value` and `count`; row i becomes id i + 1.
    """
    counted = []
    for column, seen in parts:
        codes = column.codes[seen & (column.codes >= 0)]
        counts = np.bincount(codes, minlength=len(column.values))
        counted.append(pa.table({"value": column.values, "count": pa.array(counts, pa.int64())}))
    totals = pa.concat_tables(counted).group_by("value").aggregate([("count", "sum")])
    totals = totals.rename_columns(["value", "count"]).filter(pc.field("count") >= max(min_count, 1))
    return totals.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()


def encode(column: Codes, vocabulary: pa.Table) -> np.ndarray:
    """Ids of a column's values; 0 for what is empty or not in the vocabulary. Shape: (n,) int32."""
    positions = pc.index_in(column.values, value_set=vocabulary.column("value").combine_chunks())
    ids = as_array(positions.fill_null(-1)).astype(np.int32) + 1
    encoded: np.ndarray = np.append(ids, np.int32(0))[column.codes]  # code -1 picks the appended 0
    return encoded
