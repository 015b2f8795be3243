"""The third pass of a build: the files of one partition, from its staged rows and what was learned from all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import staged as names
from gemkit.data import storage
from gemkit.data.arrays import as_array, first_not_older
from gemkit.data.base import Base
from gemkit.data.columns import Codes
from gemkit.data.hashing import hashes
from gemkit.data.holders import Holder, feature_columns
from gemkit.data.learn import Learned, bag_codes, labels
from gemkit.data.schema import Feature, Schema
from gemkit.data.source import SPLITS, Source
from gemkit.data.stage import unpacked
from gemkit.data.staged import Staged, codes_of
from gemkit.data.vocabulary import Vocabulary


class Users(NamedTuple):
    """The users of a partition.

    Attributes:
        texts: Ascending.
        of_examples, of_events: (rows,) the row of each row's user.
    """

    texts: pa.Array
    of_examples: np.ndarray
    of_events: np.ndarray


class Log(NamedTuple):
    """The event log of a partition.

    Attributes:
        order: The staged rows by user and time; equal times keep their order in the source.
        time: (events,) in that order.
        start: (users,) where each user's events begin.
    """

    order: np.ndarray
    time: np.ndarray
    start: np.ndarray


class ShardWriter:
    """Writes partitions of one segment.

    Args:
        vocabularies: Of each table, by name.
        holders: The source's users and items, if it has such tables.
        base: The data set that is appended to.
    """

    def __init__(
        self,
        source: Source,
        learned: Learned,
        staged: Staged,
        vocabularies: dict[str, Vocabulary],
        holders: dict[str, Holder],
        base: Base | None,
    ) -> None:
        self._source, self._learned, self._staged = source, learned, staged
        self._schema: Schema = learned.schema
        self._vocabularies, self._holders, self._base = vocabularies, holders, base

    def write(self, partition: int, folder: Path) -> dict[str, int]:
        """Writes a partition's files into `folder`; returns the rows of each table and split."""
        examples = self._read(names.EXAMPLES, partition)
        events = self._read(names.EVENTS, partition) if self._source.events is not None else None
        users = self._users(examples, events) if self._source.user else None
        ids = self._encoded(examples, events)
        log = None
        if events is not None and users is not None:
            log = _sorted_log(events, users)
            storage.write_table(storage.table_of(self._event_columns(events, log, ids)), folder / storage.EVENTS)
        if users is not None and (log is not None or "users" in self._holders):
            table = storage.table_of(self._user_columns(partition, users, log))
            storage.write_table(table, folder / storage.USERS)
        columns, split = self._example_columns(examples, users, log, ids)
        storage.write_table(storage.table_of(columns), folder / storage.EXAMPLES)
        counts = np.bincount(split, minlength=len(SPLITS)).tolist()
        return {
            "examples": examples.num_rows,
            "events": events.num_rows if events is not None else 0,
            "users": len(users.texts) if users is not None and has_users(self._source) else 0,
        } | dict(zip(SPLITS, counts, strict=True))

    def write_items(self, path: Path) -> int:
        """Writes the segment's items; returns the rows, the unknown item's included."""
        holder = self._holders["items"]
        columns: dict[str, Any] = {storage.VALUE: pa.concat_arrays([pa.array([""]), holder.texts])}
        columns |= feature_columns(
            _features(self._schema, "items"), holder, np.arange(-1, len(holder.texts)), self._encode
        )
        storage.write_table(storage.table_of(columns), path)
        return len(holder.texts) + 1

    def _read(self, table: str, partition: int) -> pa.Table:
        return self._staged.read(table, partition, self._staged.columns(table, partition))

    def _encode(self, table: str, column: Codes) -> np.ndarray:
        return self._vocabularies[table].encode([column])[0]

    def _encoded(self, examples: pa.Table, events: pa.Table | None) -> dict[str, np.ndarray]:
        """The ids of all columns of text, by staged name; those of bags back to back."""
        of_table: dict[str, list[tuple[str, Codes]]] = {}
        for i, c in enumerate(self._schema.categorical):
            if c.of == "examples":
                name = f"{names.CATEGORY}{i}"
                column = examples[name].combine_chunks()
                codes = bag_codes(column) if c.multi else codes_of(examples[name])
                of_table.setdefault(c.table, []).append((name, codes))
        for i, e in enumerate(self._schema.event_fields):
            assert events is not None
            name = f"{names.FIELD}{i}"
            of_table.setdefault(e.table, []).append((name, codes_of(events[name])))
        ids: dict[str, np.ndarray] = {}
        for table, columns in of_table.items():
            encoded = self._vocabularies[table].encode([codes for _, codes in columns])
            ids |= dict(zip([name for name, _ in columns], encoded, strict=True))
        return ids

    def _users(self, examples: pa.Table, events: pa.Table | None) -> Users:
        codes = [codes_of(t[names.USER]) for t in (examples, events) if t is not None]
        texts = pa.chunked_array([c.values for c in codes], pa.string()).unique()
        texts = texts.take(pc.sort_indices(texts))
        rows = [as_array(pc.index_in(c.values, value_set=texts)).astype(np.int64)[c.codes] for c in codes]
        return Users(texts, rows[0], rows[1] if len(rows) > 1 else np.zeros(0, np.int64))

    def _event_columns(self, events: pa.Table, log: Log, ids: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        limits = np.iinfo(np.int32)
        fits = not len(log.time) or (log.time.min() >= limits.min and log.time.max() <= limits.max)
        streams = self._schema.streams
        stream = np.zeros(events.num_rows, np.int64)
        if self._source.stream:
            stream = _indices(codes_of(events[names.STREAM]), streams)
        columns = {
            storage.TIMESTAMP: log.time.astype(np.int32 if fits else np.int64),
            storage.STREAM: stream[log.order].astype(storage.narrowest(len(streams) - 1)),
        }
        sizes = {t.name: t.num_embeddings for t in self._schema.tables}
        for i, e in enumerate(self._schema.event_fields):
            kind = storage.narrowest(sizes[e.table] - 1)
            columns[e.name] = ids[f"{names.FIELD}{i}"][log.order].astype(kind)
        return columns

    def _user_columns(self, partition: int, users: Users, log: Log | None) -> dict[str, Any]:
        holder = self._holders.get("users")
        segment, row = np.full(len(users.texts), -1, np.int32), np.full(len(users.texts), -1, np.int32)
        for earlier in reversed(range(self._base.segment if self._base else 0)):
            assert self._base is not None
            table = self._base.open(earlier, partition, storage.USERS)
            if table is None:
                continue
            there = pc.index_in(users.texts, value_set=storage.one_piece(table[storage.VALUE]))
            found = as_array(there.fill_null(-1)).astype(np.int32)
            new = (segment < 0) & (found >= 0)
            segment[new], row[new] = earlier, found[new]
        rows = holder.find(users.texts) if holder else np.full(len(users.texts), -1)
        return {
            storage.VALUE: users.texts,
            storage.START: log.start if log else np.zeros(len(users.texts), np.int64),
            storage.PREVIOUS_SEGMENT: segment,
            storage.PREVIOUS_USER: row,
        } | feature_columns(_features(self._schema, "users"), holder, rows, self._encode)

    def _example_columns(
        self, examples: pa.Table, users: Users | None, log: Log | None, ids: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Sorted by split, user, time; without users the order within a split is the source's."""
        source, schema = self._source, self._schema
        split, time = self._learned.splitter.of(examples), examples[names.TIME].to_numpy()
        user = users.of_examples if users else np.zeros(len(split), np.int64)
        order = np.lexsort((time, user, split)) if users else np.argsort(split, kind="stable")
        split, time, user = split[order], time[order], user[order]
        columns: dict[str, Any] = {
            storage.EXAMPLE_ID: examples[names.ID].to_numpy()[order],
            storage.SPLIT: split,
            storage.TIMESTAMP: time,
            storage.WEIGHT: examples[names.WEIGHT].to_numpy()[order],
            storage.SURFACE: np.zeros(len(order), np.int32),
            storage.GROUP: np.zeros(len(order), np.int64),
            storage.HISTORY: np.arange(len(order), dtype=np.int32),
        }
        if source.surface:
            surface = _indices(codes_of(examples[names.SURFACE]), schema.surfaces)
            columns[storage.SURFACE] = surface[order].astype(np.int32)
        if source.group:
            group = codes_of(examples[names.GROUP])
            # 63 bits of a hash: the same number in every partition and segment, without a list of all groups.
            columns[storage.GROUP] = (hashes(group.values) >> np.uint64(1)).astype(np.int64)[group.codes][order]
        if users:
            changes = (np.diff(user) != 0) | (np.diff(time) != 0)
            columns[storage.HISTORY] = np.append(0, np.cumsum(changes)).astype(np.int32)[: len(order)]
            if log or "users" in self._holders:
                columns[storage.USER] = user.astype(np.int32)
        if log:
            end = np.append(log.start[1:], len(log.time))[: len(log.start)]
            columns[storage.HISTORY_END] = first_not_older(log.time, log.start[user], end[user], time)
        if "items" in self._holders:
            item = codes_of(examples[names.ITEM])
            rows = np.append(self._holders["items"].find(item.values), -1)[item.codes] + 1
            columns[storage.ITEM] = rows[order].astype(np.int32)
        return columns | self._labels(examples, order) | self._features(examples, order, ids), split

    def _labels(self, examples: pa.Table, order: np.ndarray) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for i, (task, label) in enumerate(zip(self._source.tasks, labels(self._source, examples), strict=True)):
            label = label[order]
            columns[task.name] = pa.array(label, pa.int8(), mask=label < 0)
            if task.delay:
                delay = examples[f"{names.DELAY}{i}"].combine_chunks().take(pa.array(order))
                columns[storage.DELAY + task.name] = pc.if_else(pa.array(label == 1), delay, None)
            if task.truth:
                columns[storage.TRUTH + task.name] = examples[f"{names.TRUTH}{i}"].to_numpy()[order]
        return columns

    def _features(self, examples: pa.Table, order: np.ndarray, ids: dict[str, np.ndarray]) -> dict[str, Any]:
        schema, columns = self._schema, dict[str, Any]()
        for i, c in enumerate(schema.categorical):
            name = f"{names.CATEGORY}{i}"
            if c.of == "examples" and c.multi:
                lists = examples[name].combine_chunks()
                lengths = as_array(lists.value_lengths()) if len(order) else np.zeros(0, np.int64)
                offsets = np.append(0, np.cumsum(lengths))
                bags = pa.LargeListArray.from_arrays(offsets, pa.array(ids[name], pa.int32()))
                columns[c.name] = bags.take(pa.array(order))
            elif c.of == "examples":
                columns[c.name] = ids[name][order]
        for i, d in enumerate(schema.dense):
            if d.of == "examples":
                columns[d.name] = examples[f"{names.DENSE}{i}"].to_numpy()[order]
        for i, v in enumerate(schema.vectors):
            if v.of == "examples":
                columns[v.name] = unpacked(examples[f"{names.VECTOR}{i}"], v.width)[order]
        return columns


def has_users(source: Source) -> bool:
    """Whether the data set has files of users: for their histories, or their features."""
    return source.user is not None and (source.events is not None or source.users is not None)


def _sorted_log(events: pa.Table, users: Users) -> Log:
    time = events[names.TIME].to_numpy()
    order = np.lexsort((time, users.of_events))
    start = np.searchsorted(users.of_events[order], np.arange(len(users.texts)))
    return Log(order, time[order], start.astype(np.int64))


def _indices(column: Codes, known: tuple[str, ...]) -> np.ndarray:
    """Where each value stands among `known`. Shape: (rows,) int64."""
    found = pc.index_in(column.values, value_set=pa.array(known, pa.string()))
    indices: np.ndarray = as_array(found).astype(np.int64)[column.codes]
    return indices


def _features(schema: Schema, of: str) -> tuple[Feature, ...]:
    return tuple(f for f in schema.features if f.of == of)
