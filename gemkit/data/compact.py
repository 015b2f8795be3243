"""Merges the segments of a data set into one: one run of events for each user again. Batches stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit import __version__
from gemkit.config.fields import to_mapping
from gemkit.data import storage
from gemkit.data.arrays import as_array
from gemkit.data.base import Base
from gemkit.data.build import Progress
from gemkit.data.fetch import sha256_of
from gemkit.data.finish import ROWS, write_manifest
from gemkit.data.source import SPLITS
from gemkit.data.verify import verified
from gemkit.errors import GemkitError
from gemkit.runs.files import writing_failed


def compact(folder: Path, progress: Progress) -> bool:
    """Merges all segments, partition by partition. Ids do not change.

    Returns:
        Whether there was anything to do.

    Raises:
        GemkitError: There is no data set, it is damaged, or the disk cannot be written; or segments describe a user or
            an item differently: there is one row for each afterwards, and batches would change.
    """
    manifest, schema = verified(folder)
    if len(manifest["segments"]) == 1:
        return False
    base = Base(folder, manifest, schema)
    fresh = folder.with_name(f"{folder.name}.compacting")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        parts = []
        items, item_rows = _items(base)
        if items is not None:
            storage.write_table(items, fresh / storage.segment_folder(0) / storage.ITEMS)
        for partition in range(base.num_partitions):
            parts.append(_compact_partition(base, partition, item_rows, fresh / storage.partition_folder(0, partition)))
            progress(f"compact {schema.name}", partition + 1, base.num_partitions)
        added = {}
        for table in schema.tables:
            if not table.hashed:
                rows = pa.concat_tables([storage.open_table(f) for f in base.vocabulary_files(table.name)])
                storage.write_table(rows, fresh / storage.vocabulary_file(table.name, 0))
                added[table.name] = rows.num_rows
        storage.write_json(to_mapping(schema), fresh / storage.schema_file(0))
        segments = manifest["segments"]
        segment = {
            "rows": {n: manifest["rows"][n] for n in ROWS} | {"items": 0 if items is None else items.num_rows},
            "partitions": parts,
            "vocabularies": added,
            "by_boundaries": all(s["by_boundaries"] for s in segments),
            "first_s": min(s["first_s"] for s in segments),
            "last_s": max(s["last_s"] for s in segments),
            "gemkit": __version__,
            "source_files": {name: found for s in segments for name, found in s["source_files"].items()},
            "options": manifest["options"],
        }
        names = sorted(p for p in fresh.rglob("*") if p.is_file())
        files = {p.relative_to(fresh).as_posix(): sha256_of(p) for p in names}
        write_manifest(manifest | {"segments": [segment], "files": files}, fresh)
        storage.take_place(fresh, folder)
    except OSError as error:
        raise writing_failed(folder, error.errno or 5) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _items(base: Base) -> tuple[pa.Table | None, list[np.ndarray]]:
    """One row for each item, as its newest segment has it, and the new row of each old one, by segment."""
    tables = []
    for segment in range(base.segment):
        name = f"{storage.segment_folder(segment)}/{storage.ITEMS}"
        if name in base.manifest["files"]:
            tables.append(storage.open_table(base.folder / name))
    if not tables:
        return None, []
    merged, _ = _newest_rows(tables, storage.ITEMS)
    texts = storage.one_piece(merged[storage.VALUE])
    return merged, [as_array(pc.index_in(t[storage.VALUE], value_set=texts)).astype(np.int32) for t in tables]


def _newest_rows(tables: list[pa.Table], what: str) -> tuple[pa.Table, pa.Array]:
    """The newest row of each `_value`, ascending by it."""
    rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    texts = storage.one_piece(rows[storage.VALUE])
    order = as_array(pc.sort_indices(texts)).astype(np.int64)  # stable: a text's newest row is its last
    codes = as_array(texts.take(pa.array(order)).dictionary_encode().indices)
    same = codes[1:] == codes[:-1]
    last = np.append(~same, True) if len(codes) else np.zeros(0, bool)
    features = [n for n in rows.column_names if not n.startswith("_")]
    again = rows.select([storage.VALUE, *features]).take(pa.array(order[1:][same]))
    before = rows.select([storage.VALUE, *features]).take(pa.array(order[:-1][same]))
    for name in features:
        if not again[name].equals(before[name]):
            pairs = zip(before[name].to_pylist(), again[name].to_pylist(), strict=True)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
            raise GemkitError(
                f"segments describe {again[storage.VALUE][at].as_py()!r} differently: {name!r} has changed",
                where=what,
                fix="keep the segments: each example has the description of its own segment; or build again from all"
                " files, with one description for all examples",
            )
    merged = rows.take(pa.array(order[last]))
    return merged, storage.one_piece(merged[storage.VALUE])


def _compact_partition(base: Base, partition: int, items: list[np.ndarray], folder: Path) -> dict[str, int]:
    users = [base.open(s, partition, storage.USERS) for s in range(base.segment)]
    events = [base.open(s, partition, storage.EVENTS) for s in range(base.segment)]
    examples = [base.open(s, partition, storage.EXAMPLES) for s in range(base.segment)]
    first_event = np.zeros((0, 0), np.int64)
    of_users: list[np.ndarray] = []
    counts = {"users": 0}
    if users[0] is not None:
        merged, texts = _newest_rows([u for u in users if u is not None], storage.USERS)
        of_users = [
            as_array(pc.index_in(storage.one_piece(u[storage.VALUE]), value_set=texts)).astype(np.int64)
            for u in users
            if u is not None
        ]
        first_event = _first_events(users, events, of_users, len(texts))
        counts["users"] = len(texts)
        none = pa.array(np.full(len(texts), -1, np.int32))
        changed = {
            storage.START: pa.array(first_event[0]),
            storage.PREVIOUS_SEGMENT: none,
            storage.PREVIOUS_USER: none,
        }
        for name, values in changed.items():
            merged = merged.set_column(merged.column_names.index(name), name, values)
        storage.write_table(merged, folder / storage.USERS)
    if events[0] is not None:
        owner = [np.repeat(rows, _run_lengths(u, e)) for rows, u, e in zip(of_users, users, events, strict=True)]
        log = pa.concat_tables([e for e in events if e is not None], promote_options="permissive")
        order = np.argsort(np.concatenate(owner), kind="stable")  # within a user: by segment, then as it was
        storage.write_table(log.take(pa.array(order)), folder / storage.EVENTS)
    table = _examples(examples, users, of_users, first_event, items)
    storage.write_table(table, folder / storage.EXAMPLES)
    split = np.bincount(table[storage.SPLIT].to_numpy(), minlength=len(SPLITS)).tolist()
    num_events = sum(e.num_rows for e in events if e is not None)
    counts |= {"examples": table.num_rows, "events": num_events}
    return counts | dict(zip(SPLITS, split, strict=True))


def _run_lengths(users: pa.Table | None, events: pa.Table | None) -> np.ndarray:
    assert users is not None
    start = users[storage.START].to_numpy()
    return np.diff(np.append(start, events.num_rows if events is not None else 0))


def _first_events(users: list[Any], events: list[Any], of_users: list[np.ndarray], num_users: int) -> np.ndarray:
    """Where each segment's events of each user begin in the merged log. Shape: (segments, users) int64."""
    lengths = np.zeros((len(users), num_users), np.int64)
    for segment, rows in enumerate(of_users):
        lengths[segment, rows] = _run_lengths(users[segment], events[segment])
    start = np.append(0, np.cumsum(lengths.sum(axis=0)))[:-1]
    before: np.ndarray = start + np.cumsum(lengths, axis=0) - lengths
    return before


def _examples(
    examples: list[Any], users: list[Any], of_users: list[np.ndarray], first_event: np.ndarray, items: list[np.ndarray]
) -> pa.Table:
    moved = []
    for segment, table in enumerate(examples):
        changed: dict[str, np.ndarray] = {}
        if storage.USER in table.column_names:
            old = table[storage.USER].to_numpy()
            changed[storage.USER] = of_users[segment][old].astype(np.int32)
            if storage.HISTORY_END in table.column_names:
                seen = table[storage.HISTORY_END].to_numpy() - users[segment][storage.START].to_numpy()[old]
                changed[storage.HISTORY_END] = first_event[segment][changed[storage.USER]] + seen
        if items:
            changed[storage.ITEM] = items[segment][table[storage.ITEM].to_numpy()]
        for name, values in changed.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        moved.append(table)
    rows = pa.concat_tables(moved, promote_options="permissive").combine_chunks()
    split, time = rows[storage.SPLIT].to_numpy(), rows[storage.TIMESTAMP].to_numpy()
    of_segment = np.repeat(np.arange(len(moved)), [t.num_rows for t in moved])
    # Without users, histories are numbered all the same; they never span segments.
    old_history = rows[storage.HISTORY].to_numpy()
    has_user = storage.USER in rows.column_names
    user = rows[storage.USER].to_numpy() if has_user else np.zeros(len(split), np.int64)
    order = np.lexsort((time, user, split)) if has_user else np.lexsort((old_history, of_segment, split))
    rows = rows.take(pa.array(order))
    keys = [of_segment, old_history] if not has_user else [user, time]
    changes = np.zeros(max(len(order) - 1, 0), bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    history = np.append(0, np.cumsum(changes)).astype(np.int32)[: len(order)]
    return rows.set_column(rows.column_names.index(storage.HISTORY), storage.HISTORY, pa.array(history))
