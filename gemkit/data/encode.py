"""New examples in the terms of a built data set: its vocabularies, its statistics, its users, items and event log."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import storage
from gemkit.data.arrays import as_array, first_not_older
from gemkit.data.columns import Codes, Columns
from gemkit.data.dataset import Dataset
from gemkit.data.hashing import hashed_ids, partition_of
from gemkit.data.holders import feature_columns
from gemkit.data.shards import Rows, Shard, by_shard
from gemkit.data.source import SPLITS


class Known(NamedTuple):
    """Where a data set has the users of new examples: the newest segment's row of each.

    Attributes:
        shard, user: (rows,) shard and row of its users; -1 for a user that it does not know.
        person: (rows,) a number for each distinct user.
    """

    shard: np.ndarray
    user: np.ndarray
    person: np.ndarray


def encode_examples(dataset: Dataset, table: pa.Table, title: str) -> Dataset:
    """A data set of the rows of `table` alone, all of them in the test split, without labels.

    Ids that the data set does not know become 0. Each row sees the events of its user in the data set's log that
    are strictly older than the row; an unknown user has an empty history. Features of users and items are looked up in
    the data set, as its newest segment has them.

    Args:
        table: The columns of the examples' features, and those of user, item and timestamp where the data set has them.
        title: What errors call it.

    Raises:
        GemkitError: A column is missing, or holds what its meaning does not allow.
    """
    schema, examples = dataset.schema, Columns(table, title)
    named: dict[str, str | None] = dataset.manifest["columns"]
    rows = examples.num_rows
    timestamp = examples.seconds(named["timestamp"]) if named["timestamp"] else np.zeros(rows, np.int64)
    example_id = named["example_id"]
    columns: dict[str, Any] = {
        storage.EXAMPLE_ID: examples.whole(example_id) if example_id else np.arange(rows, dtype=np.int64),
        storage.SPLIT: np.full(rows, SPLITS.index("test"), np.int8),
        storage.TIMESTAMP: timestamp,
        storage.WEIGHT: np.ones(rows, np.float32),
        storage.SURFACE: _surfaces(dataset, examples, named["surface"]),
        storage.GROUP: np.full(rows, -1, np.int64),
        storage.HISTORY: np.arange(rows, dtype=np.int32),
        **{t.name: pa.nulls(rows, pa.int8()) for t in schema.tasks},
        **{storage.DELAY + t.name: pa.nulls(rows, pa.float32()) for t in schema.tasks if t.delay},
        **{f.name: examples.numbers(f.name) for f in schema.dense if f.of == "examples"},
        **{f.name: examples.vectors(f.name, f.width) for f in schema.vectors if f.of == "examples"},
        **_categorical(dataset, examples),
    }
    for dense in schema.dense:
        if dense.of == "examples":
            examples.refuse_outliers(dense, columns[dense.name])
    users = items = None
    if dataset.shards[0].users is not None and named["user"] is not None:
        known = _known(dataset, examples.codes(named["user"], required=True))
        columns |= _histories(dataset, known, timestamp)
        if schema.group == named["user"]:
            columns[storage.GROUP] = _groups(dataset, known)
        columns[storage.USER] = np.arange(rows, dtype=np.int32)
        users = Rows(_user_rows(dataset, known), schema)
    if dataset.shards[-1].items is not None and named["item"] is not None:
        columns[storage.ITEM] = _item_rows(dataset, examples.codes(named["item"]))
        items = dataset.shards[-1].items
    empty = {name: values[:0] for name, values in dataset.shards[0].events.items()}
    new = Shard(Rows(storage.table_of(columns), schema), users, empty, items)
    old = [shard._replace(examples=shard.examples.none(columns)) for shard in dataset.shards]
    manifest = dataset.manifest | {"rows": dataset.manifest["rows"] | {"examples": rows}}
    return Dataset(dataset.folder, schema, manifest, [*old, new])


def _categorical(dataset: Dataset, examples: Columns) -> dict[str, Any]:
    """Ids of the examples' own categorical features."""
    tables = {t.name: t for t in dataset.schema.tables}
    columns: dict[str, Any] = {}
    for f in dataset.schema.categorical:
        if f.of != "examples":
            continue
        offsets, codes = examples.bags(f.name) if f.multi else (None, examples.codes(f.name))
        table = tables[f.table]
        if table.hashed:
            ids = hashed_ids(codes.values, table.num_embeddings, table.hash_seed)
        else:
            values = pa.array(dataset.vocabulary(f.table), pa.string())
            ids = as_array(pc.index_in(codes.values, value_set=values).fill_null(-1)).astype(np.int32) + 1
        of_rows = np.append(ids, np.int32(0))[codes.codes]  # code -1, an empty cell, picks the appended 0
        columns[f.name] = of_rows if offsets is None else pa.LargeListArray.from_arrays(offsets, of_rows)
    return columns


def _groups(dataset: Dataset, known: Known) -> np.ndarray:
    """The groups of users as the data set numbers them; -1 for a user without an example in it. Shape: (rows,)."""
    groups = np.full(len(known.user), -1, np.int64)
    for part in by_shard(known.shard):
        users, shard = known.user[part.where], dataset.shards[part.shard]
        if part.shard < 0 or shard.users is None:
            continue
        of_user = np.full(shard.users.num_rows, -1, np.int64)
        of_user[shard.examples.columns[storage.USER]] = shard.examples.columns[storage.GROUP]
        groups[part.where] = np.where(users >= 0, of_user[users], -1)
    return groups


def _surfaces(dataset: Dataset, examples: Columns, column: str | None) -> np.ndarray:
    if column is None:
        return np.zeros(examples.num_rows, np.int32)
    names = dataset.schema.surfaces
    codes = examples.codes(column, required=True)
    known = np.array([names.index(v) if v in names else -1 for v in codes.values.to_pylist()], np.int32)
    surfaces: np.ndarray = known[codes.codes]
    if (surfaces < 0).any():
        value = codes.values[int(codes.codes[surfaces < 0][0])].as_py()
        raise examples.error(column, f"unknown surface {value!r}", surfaces < 0, allowed=", ".join(names))
    return surfaces


def _known(dataset: Dataset, codes: Codes) -> Known:
    partitions = dataset.manifest["partitions"]
    of = partition_of(codes.values, partitions)
    shard, user = np.full(len(of), -1), np.full(len(of), -1)
    for number in reversed(range(len(dataset.shards))):
        missing = np.flatnonzero((shard < 0) & (of == number % partitions))
        if len(missing):
            texts = _texts(dataset, number, storage.USERS)
            row = as_array(pc.index_in(codes.values.take(pa.array(missing)), value_set=texts).fill_null(-1))
            shard[missing[row >= 0]], user[missing[row >= 0]] = number, row[row >= 0]
    return Known(shard[codes.codes], user[codes.codes], codes.codes)


def _histories(dataset: Dataset, known: Known, timestamp: np.ndarray) -> dict[str, np.ndarray]:
    """Pointers to the newest event that each new example sees; nobody's history is in the new shard itself."""
    new = len(dataset.shards)
    shard, user = np.full(len(timestamp), new), np.zeros(len(timestamp), np.int64)
    end = np.zeros(len(timestamp), np.int64)
    here, user_here = known.shard.copy(), known.user.copy()
    while (here >= 0).any():
        for part in by_shard(here):
            if part.shard < 0:
                continue
            rows, own = part.rows, dataset.shards[part.shard]
            users, at = dataset.users(part.shard), user_here[part.rows]
            start = users[storage.START][at]
            first = first_not_older(own.events[storage.TIMESTAMP], start, own.run_end(at), timestamp[rows])
            found, segment = first > start, users[storage.PREVIOUS_SEGMENT][at].astype(np.int64)
            shard[rows[found]], user[rows[found]], end[rows[found]] = part.shard, at[found], first[found]
            more = ~found & (segment >= 0)
            here[rows] = np.where(more, dataset.shard_number(segment, part.shard), -1)
            user_here[rows] = users[storage.PREVIOUS_USER][at]
    _, history = np.unique(np.stack([known.person, timestamp]), axis=1, return_inverse=True)
    return {
        storage.HISTORY_SHARD: shard,
        storage.HISTORY_USER: user,
        storage.HISTORY_END: end,
        storage.HISTORY: history.ravel().astype(np.int32),
    }


def _user_rows(dataset: Dataset, known: Known) -> pa.Table:
    """The features of the new examples' users, a row for each example; nobody has events in it."""
    pieces, order = [], []
    first = _table(dataset, 0, storage.USERS).schema
    names = [n for n in first.names if not n.startswith("_")]
    own = pa.schema([first.field(n) for n in names])
    for part in by_shard(known.shard):
        if part.shard < 0:
            features = [f for f in dataset.schema.features if f.of == "users"]
            nobody = np.full(len(part.rows), -1)
            unknown = feature_columns(tuple(features), None, nobody, lambda *_: np.zeros(0, np.int32))
            piece = storage.table_of(unknown).select(names).cast(own)
        else:
            piece = _table(dataset, part.shard, storage.USERS).select(names).take(pa.array(known.user[part.rows]))
        pieces.append(piece)
        order.append(part.rows)
    rows = len(known.user)
    columns = {storage.START: np.zeros(rows, np.int64), storage.PREVIOUS_SEGMENT: np.full(rows, -1, np.int32)}
    columns[storage.PREVIOUS_USER] = np.full(rows, -1, np.int32)
    table = storage.table_of(columns)
    if names:
        joined = pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))
        for name in names:
            table = table.append_column(name, joined[name])
    return table


def _item_rows(dataset: Dataset, codes: Codes) -> np.ndarray:
    """Rows of the newest segment's items; 0 for an unknown one."""
    texts = _texts(dataset, len(dataset.shards) - 1, storage.ITEMS)
    row = as_array(pc.index_in(codes.values, value_set=texts).fill_null(0)).astype(np.int32)
    rows: np.ndarray = np.append(row, np.int32(0))[codes.codes]
    return rows


def _texts(dataset: Dataset, shard: int, name: str) -> pa.Array:
    return _table(dataset, shard, name)[storage.VALUE].combine_chunks()


def _table(dataset: Dataset, shard: int, name: str) -> pa.Table:
    segment, partition = divmod(shard, dataset.manifest["partitions"])
    folder = storage.partition_folder(segment, partition) if name == storage.USERS else storage.segment_folder(segment)
    return storage.open_table(dataset.folder / folder / name)
