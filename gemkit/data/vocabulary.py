"""Ids: which text gets which row of an embedding table, counted over all partitions and looked up for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.arrays import as_array
from gemkit.data.columns import Codes
from gemkit.data.hashing import hashed_ids
from gemkit.data.schema import Table
from gemkit.data.storage import open_table

if TYPE_CHECKING:
    import duckdb

COUNTED = pa.schema({"value": pa.string(), "count": pa.int64()})
BATCH_ROWS = 100_000


def count_values(parts: Iterable[tuple[Codes, np.ndarray | None]]) -> pa.Table:
    """How often each value occurs in columns that share an id space. Columns `value` and `count`, unordered.

    Args:
        parts: A column, and which of its entries count (a boolean mask; None: all).
    """
    counted = [COUNTED.empty_table()]
    for column, seen in parts:
        chosen = column.codes >= 0 if seen is None else seen & (column.codes >= 0)
        counts = np.bincount(column.codes[chosen], minlength=len(column.values))
        counted.append(pa.table({"value": column.values, "count": counts}, COUNTED))
    totals = pa.concat_tables(counted).group_by("value").aggregate([("count", "sum")])
    return totals.rename_columns(["value", "count"]).filter(pc.field("count") > 0).cast(COUNTED)


def merge_counts(
    connection: duckdb.DuckDBPyConnection, counts: Iterable[pa.Table], known: list[Path], min_count: int
) -> pa.Table:
    """Adds the counts of partitions: most frequent first, equals in order of text.

    Args:
        known: Vocabulary files whose values have ids already.
    """
    connection.register("counts", _reader(counts))
    connection.register("known", _reader(open_table(path).select(["value", "count"]) for path in known))
    try:
        return (
            connection.sql(
                "SELECT value, sum(count)::BIGINT AS count FROM counts ANTI JOIN known USING (value)"
                f" GROUP BY value HAVING sum(count) >= {int(min_count)} ORDER BY count DESC, value"
            )
            .to_arrow_table()
            .cast(COUNTED)
        )
    finally:
        connection.unregister("counts")
        connection.unregister("known")


def _reader(tables: Iterable[pa.Table]) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            yield from table.cast(COUNTED).to_batches(BATCH_ROWS)

    return pa.RecordBatchReader.from_batches(COUNTED, batches())


class Vocabulary:
    """The ids of one table.

    Args:
        table: The id space.
        files: Its vocabulary files, in order; none if it is hashed.
    """

    def __init__(self, table: Table, files: list[Path]) -> None:
        self._table = table
        self._files = files

    def encode(self, columns: list[Codes]) -> list[np.ndarray]:
        """Ids of columns of one partition; 0 for what is empty or has no id. Shape: (n,) int32 each."""
        texts = pa.chunked_array([c.values for c in columns], pa.string()).unique()
        ids = self._look_up(texts)
        # An empty cell's code is -1, which picks the 0 behind the last text.
        return [np.append(ids[as_array(pc.index_in(c.values, value_set=texts))], np.int32(0))[c.codes] for c in columns]

    def _look_up(self, texts: pa.Array) -> np.ndarray:
        """Ids of distinct texts. The partition's texts are in memory; the vocabulary, which may be larger, is not."""
        if self._table.hashed:
            return hashed_ids(texts, self._table.num_embeddings, self._table.hash_seed)
        ids = np.zeros(len(texts), np.int32)
        first_id = 1
        for path in self._files:
            values = open_table(path)["value"]
            # Blocks as large as `texts`, of which Arrow builds a table for each: no dearer than the search.
            for start in range(0, len(values), block := max(BATCH_ROWS, len(texts))):
                found = pc.index_in(values.slice(start, block), value_set=texts)
                hit = as_array(found.is_valid())
                ids[as_array(found.drop_null())] = first_id + start + np.flatnonzero(hit).astype(np.int32)
            first_id += len(values)
        return ids
