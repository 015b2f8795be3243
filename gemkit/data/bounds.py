"""Checks that the tables of a dataset folder are what its schema says: columns, types, and every id within its bounds.

Hashes say that a folder is as it was built; this says that it can be read without harm, whoever built it. An id beyond
its embedding table would read memory that is not the table's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.arrays import as_array, standardised
from gemkit.data.checks import is_name
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Schema, VectorFeature
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError

MAX_ABS_SECONDS = 10**12
"""Differences of such times stay exact."""


def check_schema(schema: Schema, where: str) -> None:
    """Raises a `GemkitError` if the schema contradicts itself or has names that could not be files."""
    declared: tuple[DenseFeature | CategoricalFeature | VectorFeature, ...]
    declared = (*schema.dense, *schema.categorical, *schema.vectors)
    features = [f.name for f in declared]
    tables = [t.name for t in schema.tables]
    lists = {
        "features and tasks": [*features, *schema.task_names],
        "tables": tables,
        "event fields": [e.name for e in schema.event_fields],
    }
    for what, names in lists.items():
        bad = [n for n in names if not is_name(n)] or [n for n in names if names.count(n) > 1]
        if bad:
            raise _refused(f"the {what} of the schema have the name {bad[0]!r}", where)
    with_table: tuple[CategoricalFeature | EventField, ...] = (*schema.categorical, *schema.event_fields)
    for f in with_table:
        if f.table not in tables:
            raise _refused(f"feature {f.name!r} names the table {f.table!r}, which the schema does not have", where)
    for task in schema.tasks:
        if task.masked_by is not None and task.masked_by not in schema.task_names:
            raise _refused(f"task {task.name!r} is masked by {task.masked_by!r}, which is no task", where)
    if not schema.tasks or not features or not schema.surfaces or (schema.has_events and not schema.streams):
        raise _refused("the schema has no tasks, no features, no surfaces, or events without streams", where)


def check_examples(schema: Schema, examples: pa.Table, rows: dict[str, int], where: str) -> None:
    """Raises a `GemkitError` that names a column with a wrong type, an empty cell, or a value out of bounds."""
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    own = {
        storage.EXAMPLE_ID: pa.int64(), storage.SPLIT: pa.int8(), storage.TIMESTAMP: pa.int64(),
        storage.HISTORY: pa.int64(), storage.WEIGHT: pa.float32(), storage.SURFACE: pa.int32(),
        storage.GROUP: pa.int64(),
    }  # fmt: skip
    if schema.has_events:
        own |= {storage.HISTORY_START: pa.int64(), storage.HISTORY_END: pa.int64()}
    types: dict[str, tuple[Any, ...]] = {name: (kind,) for name, kind in own.items()}
    types |= {name: (pa.int8(),) for name in schema.task_names}
    types |= {f.name: (pa.float32(), pa.float64()) for f in schema.dense}
    types |= {f.name: (pa.large_list(pa.int32()) if f.multi else pa.int32(),) for f in schema.categorical}
    types |= {f.name: (pa.list_(pa.float32(), f.width),) for f in schema.vectors}
    _check_columns(examples, types, set(schema.task_names), rows["examples"], where)
    bounds = {storage.SPLIT: 2, storage.SURFACE: len(schema.surfaces) - 1, storage.HISTORY: None}
    bounds |= {f.name: sizes[f.table] - 1 for f in schema.categorical} | dict.fromkeys(schema.task_names, 1)
    for name, high in bounds.items():
        _check_range(name, _flat(examples, name), 0, high, where)
    _check_range(storage.TIMESTAMP, _flat(examples, storage.TIMESTAMP), -MAX_ABS_SECONDS, MAX_ABS_SECONDS, where)
    dense = {f.name: f for f in schema.dense}
    for name in (storage.WEIGHT, *dense, *(f.name for f in schema.vectors)):
        values = _flat(examples, name)
        if name in dense:
            values = standardised(values, dense[name])
        if not np.isfinite(values).all() or (name == storage.WEIGHT and (values < 0).any()):
            raise _refused(f"column {name!r} has a value that no data set has", where)
    found = np.bincount(_flat(examples, storage.SPLIT), minlength=3).tolist()
    if found != [rows[name] for name in SPLITS]:
        raise _refused(f"the splits have {found} rows, the manifest says {[rows[n] for n in SPLITS]}", where)


def check_events(schema: Schema, events: pa.Table, num_users: int, rows: dict[str, int], where: str) -> None:
    """Raises a `GemkitError` if the event log has wrong columns, ids out of bounds, or is not in order."""
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    types: dict[str, tuple[Any, ...]] = {
        storage.USER: (pa.int32(),), storage.TIMESTAMP: (pa.int64(),), storage.STREAM: (pa.int32(),)
    }  # fmt: skip
    types |= {e.name: (pa.int32(),) for e in schema.event_fields}
    _check_columns(events, types, set(), rows["events"], where)
    bounds = {storage.USER: num_users - 1, storage.STREAM: len(schema.streams) - 1}
    bounds |= {e.name: sizes[e.table] - 1 for e in schema.event_fields}
    for name, high in bounds.items():
        _check_range(name, _flat(events, name), 0, high, where)
    time, user = _flat(events, storage.TIMESTAMP), _flat(events, storage.USER)
    _check_range(storage.TIMESTAMP, time, -MAX_ABS_SECONDS, MAX_ABS_SECONDS, where)
    if ((user[1:] < user[:-1]) | ((user[1:] == user[:-1]) & (time[1:] < time[:-1]))).any():
        raise _refused("the events are not in order of user and time", where)


def check_histories(examples: pa.Table, events: pa.Table, where: str) -> None:
    """Raises a `GemkitError` if an example points outside the log, at several users' events, or at its own future."""
    start, end = (_flat(examples, name) for name in (storage.HISTORY_START, storage.HISTORY_END))
    _check_range(storage.HISTORY_START, start, 0, events.num_rows, where)
    _check_range(storage.HISTORY_END, end, 0, events.num_rows, where)
    if (start > end).any():
        raise _refused(f"column {storage.HISTORY_END!r} is before {storage.HISTORY_START!r}", where)
    full = start < end
    first, last, now = start[full], end[full] - 1, _flat(examples, storage.TIMESTAMP)[full]
    user = _flat(events, storage.USER)
    if (user[first] != user[last]).any():
        raise _refused("an example's history has events of several users", where)
    if (_flat(events, storage.TIMESTAMP)[last] >= now).any():
        raise _refused("an example's history has events that are not older than the example", where)


def check_texts(table: pa.Table, columns: dict[str, Any], rows: int | None, where: str) -> None:
    """Raises a `GemkitError` if a vocabulary, or the list of users, is not one, or not of `rows` rows."""
    _check_columns(table, {name: (kind,) for name, kind in columns.items()}, set(), rows, where)


def _check_columns(
    table: pa.Table, types: dict[str, tuple[Any, ...]], nullable: set[str], rows: int | None, where: str
) -> None:
    if rows is not None and table.num_rows != rows:
        raise _refused(f"there are {table.num_rows:,} rows, the manifest says {rows:,}", where)
    if sorted(table.column_names) != sorted(types):
        odd = sorted(set(table.column_names) ^ set(types)) or [n for n in types if table.column_names.count(n) > 1]
        raise _refused(f"the columns are not those of the schema: {odd[0]!r}", where)
    for name, kinds in types.items():
        column = table.column(name)
        # By value type: how the list's element is called is of no account.
        if not any(column.type.equals(kind) or _same_list(column.type, kind) for kind in kinds):
            raise _refused(f"column {name!r} has type {column.type}", where, allowed=" or ".join(map(str, kinds)))
        inner = [c.values for c in column.chunks] if pa.types.is_nested(column.type) else []
        if (column.null_count and name not in nullable) or any(values.null_count for values in inner):
            raise _refused(f"column {name!r} has empty cells", where)


def _same_list(a: Any, b: Any) -> bool:
    if pa.types.is_large_list(a) and pa.types.is_large_list(b):
        return bool(a.value_type.equals(b.value_type))
    if pa.types.is_fixed_size_list(a) and pa.types.is_fixed_size_list(b):
        return bool(a.value_type.equals(b.value_type) and a.list_size == b.list_size)
    return False


def _flat(table: pa.Table, name: str) -> np.ndarray:
    """A column's values; of lists, those of all rows; empty cells left out."""
    column = table.column(name).combine_chunks()
    if pa.types.is_nested(column.type):
        # All that the batches can reach: an id that no row holds is checked, too.
        return as_array(column.values)
    return as_array(column.drop_null()) if column.null_count else as_array(column)


def _check_range(name: str, values: np.ndarray, low: int, high: int | None, where: str) -> None:
    if not len(values):
        return
    least, most = int(values.min()), int(values.max())
    if least < low or (high is not None and most > high):
        shown = least if least < low else most
        allowed = f"{low} to {high}" if high is not None else f"{low} or more"
        raise _refused(f"column {name!r} has the value {shown}, which is out of bounds", where, allowed=allowed)


def _refused(what: str, where: str, allowed: str | None = None) -> GemkitError:
    return GemkitError(what, where=where, allowed=allowed, fix="delete the folder and build it again")
