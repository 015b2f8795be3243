"""New examples in the terms of a built data set: its vocabularies, its statistics, its event log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.columns import Codes, Columns
from gemkit.data.dataset import Dataset
from gemkit.data.eventlog import combined_keys
from gemkit.data.source import SPLITS
from gemkit.data.vocabulary import encode


def encode_examples(dataset: Dataset, table: pa.Table, title: str) -> Dataset:
    """A data set of the rows of `table` alone, all of them in the test split, without labels.

    Ids that the data set does not know become 0. Each row sees the events of its user in the data set's log that
    are strictly older than the row; an unknown user has an empty history.

    Args:
        table: The feature columns, and (if the data set has histories) those of user and timestamp.
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
        storage.GROUP: np.zeros(rows, np.int64),
        **_histories(dataset, examples, named["user"], timestamp),
        **{name: pa.nulls(rows, pa.int8()) for name in schema.task_names},
        **{f.name: examples.numbers(f.name) for f in schema.dense},
        **{f.name: examples.vectors(f.name, f.width) for f in schema.vectors},
    }
    for f in schema.categorical:
        vocabulary = storage.open_table(dataset.folder / storage.VOCABULARIES / f"{f.table}.arrow")
        if f.multi:
            offsets, codes = examples.bags(f.name)
            columns[f.name] = pa.LargeListArray.from_arrays(offsets, encode(codes, vocabulary))
        else:
            columns[f.name] = encode(examples.codes(f.name), vocabulary)
    for dense in schema.dense:
        examples.refuse_outliers(dense, columns[dense.name])
    manifest = dataset.manifest | {"rows": dataset.manifest["rows"] | {"examples": rows}}
    encoded = Dataset(dataset.folder, schema, manifest, storage.table_of(columns), None)
    encoded.events = dataset.events
    return encoded


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


def _histories(
    dataset: Dataset, examples: Columns, user_column: str | None, timestamp: np.ndarray
) -> dict[str, np.ndarray]:
    if not dataset.schema.has_events or user_column is None:
        return {storage.HISTORY: np.arange(examples.num_rows, dtype=np.int64)}
    users = storage.open_table(dataset.folder / storage.USERS)
    codes: Codes = examples.codes(user_column, required=True)
    user = encode(codes, users).astype(np.int64) - 1
    # Unknown users come after all known ones, each distinct text for itself: two of them share nothing.
    user = np.where(user < 0, users.num_rows + codes.codes, user)
    log_user = dataset.events[storage.USER].astype(np.int64)
    log_keys, keys = combined_keys(log_user, dataset.events[storage.TIMESTAMP], user, timestamp)
    return {
        storage.HISTORY: np.unique(keys, return_inverse=True)[1].astype(np.int64),
        storage.HISTORY_START: np.searchsorted(log_user, user),
        storage.HISTORY_END: np.searchsorted(log_keys, keys),
    }
