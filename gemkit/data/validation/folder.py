"""All rules of the tables of a dataset folder, file by file."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.schema import Schema
from gemkit.data.validation import owners, shard
from gemkit.data.validation.columns import Column, check_types, check_values, whole
from gemkit.data.validation.schema import features_of, has_users
from gemkit.data.validation.unique import repeated
from gemkit.data.validation.violation import Findings, Violation, about_file
from gemkit.errors import GemkitError

VOCABULARY = {"value": Column((pa.string(),)), "count": Column((pa.int64(),), 0)}


def violations(
    folder: Path, manifest: dict[str, Any], schema: Schema, *, thorough: bool = False, unread: Collection[str] = ()
) -> Iterator[Violation]:
    """What the tables of a dataset folder hold that they must not.

    Args:
        thorough: Also what no reading depends on and what takes longer: that ids and texts are there once over all
            files, and that users are in the partition of their hash and linked to their newest earlier rows.
        unread: Files that are known not to be readable; nothing more is said about them.
    """
    yield from _Folder(folder, manifest, schema, thorough, unread).violations()


class _Folder:
    def __init__(
        self, folder: Path, manifest: dict[str, Any], schema: Schema, thorough: bool, unread: Collection[str]
    ) -> None:
        self.folder, self.manifest, self.schema = folder, manifest, schema
        self.thorough = thorough
        self.unread = unread
        self.segments: list[dict[str, Any]] = manifest["segments"]
        self.has_items = bool(features_of(schema, "items")) or self._items(0) in manifest["files"]
        self.sound: set[str] = set()
        """Tables of which columns, types and bounds are right."""

    def violations(self) -> Iterator[Violation]:
        yield from self._unknown_files()
        yield from self._vocabularies()
        for segment, about in enumerate(self.segments):
            if self.has_items:
                yield from self._check_items(segment, about["rows"]["items"])
        for partition in range(self.manifest["partitions"]):
            roll = owners.Roll(partition, self.manifest["partitions"])
            earlier: list[owners.Earlier | None] = []
            for segment in range(len(self.segments)):
                yield from self._check_shard(segment, partition, earlier, roll)
        if self.thorough:
            names = [n for n in self.manifest["files"] if n.endswith("/" + storage.EXAMPLES)]
            yield from repeated(self.folder, self._sound(names), storage.EXAMPLE_ID, "the example id")
            for table in self.schema.tables:
                names = [storage.vocabulary_file(table.name, s) for s in range(len(self.segments))]
                yield from repeated(self.folder, self._sound(names), "value", f"a value of table {table.name!r}")

    def _unknown_files(self) -> Iterator[Violation]:
        known = {storage.schema_file(len(self.segments) - 1)}
        for segment in range(len(self.segments)):
            known |= {storage.vocabulary_file(t.name, segment) for t in self.schema.tables if not t.hashed}
            if self.has_items:
                known.add(self._items(segment))
            for partition in range(self.manifest["partitions"]):
                names = [storage.EXAMPLES]
                names += [storage.USERS] if has_users(self.schema) else []
                names += [storage.EVENTS] if self.schema.has_events else []
                known |= {f"{storage.partition_folder(segment, partition)}/{n}" for n in names}
        for name in self.manifest["files"].keys() - known:
            yield about_file(storage.MANIFEST, f"the manifest names {name}, which the schema has no use for")

    def _vocabularies(self) -> Iterator[Violation]:
        names = {t.name for t in self.schema.tables if not t.hashed}
        for segment, about in enumerate(self.segments):
            for name in about["vocabularies"].keys() - names:
                what = f"segment {segment} counts a vocabulary of {name!r}, which is no table with a vocabulary"
                yield about_file(storage.MANIFEST, what)
        for table in self.schema.tables:
            if table.hashed:
                continue
            counts = [about["vocabularies"].get(table.name, 0) for about in self.segments]
            if table.num_embeddings != 1 + sum(counts):
                what = f"table {table.name!r} has {table.num_embeddings:,} rows, its vocabulary {sum(counts):,}"
                yield about_file(
                    storage.schema_file(len(self.segments) - 1),
                    what,
                    f"{1 + sum(counts):,}: a row for each, and the unknown row",
                )
            for segment, count in enumerate(counts):
                name = storage.vocabulary_file(table.name, segment)
                if count or name in self.manifest["files"]:  # a segment that adds nothing may have no file
                    yield from self._checked(name, VOCABULARY, count)

    def _check_items(self, segment: int, num_rows: int) -> Iterator[Violation]:
        items = yield from self._checked(self._items(segment), owners.item_columns(self.schema), num_rows)
        if items is not None:
            findings = Findings(self._items(segment))
            owners.check_items(findings, items, self.schema)
            yield from findings

    def _check_shard(
        self, segment: int, partition: int, earlier: list[owners.Earlier | None], roll: owners.Roll
    ) -> Iterator[Violation]:
        about = self.segments[segment]
        counts, first_s, last_s = about["partitions"][partition], about["first_s"], about["last_s"]
        place = storage.partition_folder(segment, partition)
        events, users, start = None, None, np.zeros(0, np.int64)
        if has_users(self.schema):
            users = yield from self._check_users(f"{place}/{storage.USERS}", segment, counts, earlier, roll)
            start = start if users is None else whole(users, storage.START)
        if self.schema.has_events:
            columns = shard.event_columns(self.schema, first_s, last_s)
            events = yield from self._checked(f"{place}/{storage.EVENTS}", columns, counts["events"])
            if events is not None and users is not None:
                findings = Findings(f"{place}/{storage.EVENTS}")
                shard.check_events(findings, events, start)
                yield from findings
        times = np.zeros(0, np.int64) if events is None else whole(events, storage.TIMESTAMP)
        usable = users is not None and (events is not None or not self.schema.has_events)
        before = owners.newest_before(users, earlier) if usable else None
        newest = owners.newest_events(users, times, before) if before is not None else None
        name = f"{place}/{storage.EXAMPLES}"
        num_items = about["rows"]["items"] if self.has_items else None
        columns = shard.example_columns(self.schema, first_s, last_s, counts["users"], counts["events"], num_items)
        examples = yield from self._checked(name, columns, counts["examples"])
        if examples is not None:
            findings = Findings(name)
            shard.check_examples(findings, examples, counts, self.manifest["columns"]["user"] is not None)
            shard.check_labels(findings, examples, self.schema)
            if self.thorough and about["by_boundaries"] and self.manifest["boundaries"] is not None:
                shard.check_boundaries(findings, examples, self.manifest["boundaries"])
            if events is not None and before is not None:
                shard.check_histories(findings, examples, start, times, before)
            yield from findings
        earlier.append(None if users is None or newest is None else owners.Earlier(users[storage.VALUE], newest))

    def _check_users(
        self, name: str, segment: int, counts: dict[str, int], earlier: list[owners.Earlier | None], roll: owners.Roll
    ) -> Generator[Violation, None, pa.Table | None]:
        columns = owners.user_columns(self.schema, segment, counts["events"])
        users = yield from self._checked(name, columns, counts["users"])
        if users is None:
            roll.is_complete = False
            return None
        findings = Findings(name)
        owners.check_users(findings, users, counts["events"], earlier)
        if self.thorough:
            roll.check(findings, users, segment, earlier)
        yield from findings
        return None if any(v.column == storage.START for v in findings) else users

    def _checked(
        self, name: str, columns: dict[str, Column], num_rows: int
    ) -> Generator[Violation, None, pa.Table | None]:
        """Yields what is wrong with a table's columns; returns the table if nothing is."""
        if name not in self.manifest["files"]:
            yield about_file(storage.MANIFEST, f"the manifest does not name {name}")
            return None
        if name in self.unread:
            return None
        try:
            table = storage.open_table(self.folder / name)
        except GemkitError as error:
            yield about_file(name, error.what)
            return None
        found = list(check_types(name, table, columns, num_rows))
        if not found:
            findings = Findings(name)
            check_values(findings, table, columns)
            found = list(findings)
        yield from found
        if found:
            return None
        self.sound.add(name)
        return table

    def _sound(self, names: list[str]) -> list[str]:
        return [n for n in names if n in self.sound]

    @staticmethod
    def _items(segment: int) -> str:
        return f"{storage.segment_folder(segment)}/{storage.ITEMS}"
