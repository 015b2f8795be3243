"""The tables of users and items of a source: one row of features for each, in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.arrays import as_array, offsets_of, ranges
from gemkit.data.columns import Codes, Columns
from gemkit.data.schema import DenseFeature, Feature, VectorFeature
from gemkit.data.source import Source
from gemkit.data.staged import text_of

Encode = Callable[[str, Codes], np.ndarray]
"""(table, column) -> ids."""


class Holder:
    """The users or the items.

    Attributes:
        of: ``users`` or ``items``.
        texts: Who they are, ascending.
        dense, vectors: Feature -> (rows,) or (rows, width).
        codes: Categorical feature -> its ids, those of bags back to back.
        offsets: Bag -> (rows+1,).

    Raises:
        GemkitError: A column has values that its meaning does not allow, or a user or item has two rows.
    """

    def __init__(self, source: Source, of: str) -> None:
        table, key, title = (
            (source.users, source.user, source.users_title)
            if of == "users"
            else (source.items, source.item, source.items_title)
        )
        assert table is not None and key  # check_declaration has seen to it
        columns = Columns(table, title)
        keys = columns.codes(key, required=True)
        twice = np.bincount(keys.codes, minlength=1)[keys.codes] > 1
        if twice.any():
            shown = keys.values[int(keys.codes[twice][0])].as_py()
            raise columns.error(key, f"{of[:-1]} {shown!r} has more than one row", twice, fix="keep one of them")
        order = as_array(pc.sort_indices(text_of(keys)))
        self.of = of
        self.texts = text_of(keys).take(pa.array(order))
        self.columns = columns
        self.order = order
        self.dense = {d.name: columns.numbers(d.name)[order] for d in source.dense if d.of == of}
        self.vectors = {v.name: columns.vectors(v.name, v.width)[order] for v in source.vectors if v.of == of}
        self.codes: dict[str, Codes] = {}
        self.offsets: dict[str, np.ndarray] = {}
        for c in (c for c in source.categorical if c.of == of):
            if c.multi:
                offsets, codes = columns.bags(c.name)
                starts, ends = offsets[:-1][order], offsets[1:][order]
                self.offsets[c.name] = offsets_of(ends - starts)
                self.codes[c.name] = Codes(codes.codes[ranges(starts, ends)], codes.values)
            else:
                codes = columns.codes(c.name)
                self.codes[c.name] = Codes(codes.codes[order], codes.values)

    def find(self, texts: pa.Array) -> np.ndarray:
        """The row of each text, -1 where there is none. Shape: (n,) int64."""
        found = pc.index_in(texts, value_set=self.texts, skip_nulls=True)
        return as_array(found.fill_null(-1)).astype(np.int64)

    def value_counts(self, feature: str, counts: np.ndarray) -> pa.Table:
        """How often training examples show each value, if `counts` (rows,) of them have each row."""
        if feature in self.offsets:
            counts = np.repeat(counts, np.diff(self.offsets[feature]))
        column = self.codes[feature]
        full = column.codes >= 0
        totals = np.zeros(len(column.values), np.int64)
        np.add.at(totals, column.codes[full], counts[full])
        return pa.table({"value": column.values, "count": totals}).filter(pc.field("count") > 0)


def feature_columns(
    features: tuple[Feature, ...],
    holder: Holder | None,
    rows: np.ndarray,
    encode: Encode,
) -> dict[str, Any]:
    """The columns of users.arrow or items.arrow for rows of `holder`; row -1 is somebody without features.

    Args:
        features: Those of users, or of items, with their statistics.
        holder: None: nobody has features.
    """
    known = rows >= 0
    result: dict[str, Any] = {}
    for f in features:
        if isinstance(f, DenseFeature):
            kind = holder.dense[f.name].dtype if holder else np.dtype(np.float64)
            dense = np.full(len(rows), unknown(f), kind)
            if holder:
                dense[known] = holder.dense[f.name][rows[known]]
            result[f.name] = dense
        elif isinstance(f, VectorFeature):
            vectors = np.zeros((len(rows), f.width), np.float32)
            if holder:
                vectors[known] = holder.vectors[f.name][rows[known]]
            result[f.name] = vectors
        elif f.multi:
            lengths, ids = np.zeros(len(rows), np.int64), np.zeros(0, np.int32)
            if holder:
                offsets, all_ids = holder.offsets[f.name], encode(f.table, holder.codes[f.name])
                lengths[known] = np.diff(offsets)[rows[known]]
                ids = all_ids[ranges(offsets[:-1][rows[known]], offsets[1:][rows[known]])]
            result[f.name] = pa.LargeListArray.from_arrays(offsets_of(lengths), ids)
        else:
            single = np.zeros(len(rows), np.int32)
            if holder:
                single[known] = encode(f.table, holder.codes[f.name])[rows[known]]
            result[f.name] = single
    return result


def unknown(feature: DenseFeature) -> float:
    """The value that a user or item without features has: standardised it is 0."""
    if feature.transform == "log1p":
        return float(np.sign(feature.mean) * np.expm1(abs(feature.mean)))
    return feature.mean
