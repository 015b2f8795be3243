"""Rules of users.arrow and items.arrow: who has events and features, once each and in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import hashing, storage
from gemkit.data.arrays import as_array, transformed
from gemkit.data.schema import Schema
from gemkit.data.validation.columns import Column, feature_columns, not_ascending, piece, whole
from gemkit.data.validation.schema import features_of
from gemkit.data.validation.violation import Findings, slices

NO_EVENT = np.iinfo(np.int64).min


class Earlier(NamedTuple):
    """What later segments need to know of the users of a segment of their partition.

    Attributes:
        texts: (users,) ascending.
        newest: (users,) int64, time of the newest event up to this segment, or `NO_EVENT`.
    """

    texts: pa.ChunkedArray
    newest: np.ndarray


def user_columns(schema: Schema, segment: int, num_events: int) -> dict[str, Column]:
    """What the columns of users.arrow must be."""
    return {
        storage.VALUE: Column((pa.string(),)),
        storage.START: Column((pa.int64(),), 0, num_events),
        storage.PREVIOUS_SEGMENT: Column((pa.int32(),), -1, segment - 1),
        storage.PREVIOUS_USER: Column((pa.int32(),), -1),
    } | feature_columns(schema, "users")


def item_columns(schema: Schema) -> dict[str, Column]:
    """What the columns of items.arrow must be."""
    return {storage.VALUE: Column((pa.string(),))} | feature_columns(schema, "items")


def check_users(findings: Findings, users: pa.Table, num_events: int, earlier: Sequence[Earlier | None]) -> None:
    """Order of the texts, runs that follow each other, and links to rows of the same user."""
    not_ascending(findings, users.column(storage.VALUE))
    start = whole(users, storage.START)
    if len(start):
        findings.add(
            storage.START, "the first user's events do not begin at row 0", np.flatnonzero(start[:1]), "0", start[:1]
        )
    elif num_events:
        findings.say(None, "there are events, but no user", "a row for each user")
    for low, high in slices(len(start) - 1):
        rows = low + 1 + np.flatnonzero(start[low + 1 : high + 1] < start[low:high])
        findings.add(storage.START, "the events begin before those of the row before", rows, "ascending", start[rows])
    _check_links(findings, users, earlier)


def _check_links(findings: Findings, users: pa.Table, earlier: Sequence[Earlier | None]) -> None:
    texts = users.column(storage.VALUE)
    for low, high in slices(users.num_rows):
        segment, row = (piece(users, n, low, high) for n in (storage.PREVIOUS_SEGMENT, storage.PREVIOUS_USER))
        half = low + np.flatnonzero((segment < 0) != (row < 0))
        findings.add(
            storage.PREVIOUS_USER, "only one of _previous_segment and _previous_user is -1", half, "both or none"
        )
        for number in np.unique(segment[segment >= 0]).tolist():
            other = earlier[number]
            here = np.flatnonzero((segment == number) & (row >= 0))
            if other is None:
                continue  # that shard has its own violations
            there = row[here]
            beyond = there >= len(other.texts)
            findings.add(
                storage.PREVIOUS_USER,
                "the row {value} of segment " + f"{number} is beyond its users",
                low + here[beyond],
                f"0 to {len(other.texts) - 1}",
                there[beyond],
            )
            here, there = here[~beyond], there[~beyond]
            mine, theirs = texts.take(pa.array(low + here)), other.texts.take(pa.array(there))
            others = low + here[as_array(storage.one_piece(pc.not_equal(mine, theirs)))]
            findings.add(
                storage.PREVIOUS_USER, f"the row of segment {number} is of another user", others, "the same `_value`"
            )


def newest_events(users: pa.Table, times: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Time of each user's newest event up to this segment, or `NO_EVENT`. Shape: (users,) int64.

    Args:
        times: (events,) of the segment's events.
        before: (users,) as `newest_before` says.
    """
    start = whole(users, storage.START)
    end = np.append(start[1:], len(times))[: len(start)]
    full = np.flatnonzero(end > start)
    newest = before.copy()
    newest[full] = times[end[full] - 1]
    return newest


def newest_before(users: pa.Table, earlier: Sequence[Earlier | None]) -> np.ndarray:
    """Time of each user's newest event in earlier segments, or `NO_EVENT`. Shape: (users,) int64."""
    segment, row = (whole(users, n) for n in (storage.PREVIOUS_SEGMENT, storage.PREVIOUS_USER))
    newest = np.full(len(segment), NO_EVENT)
    for number, other in enumerate(earlier):
        if other is not None:
            here = np.flatnonzero((segment == number) & (row >= 0) & (row < len(other.newest)))
            newest[here] = other.newest[row[here]]
    return newest


class Roll:
    """The users that a partition has had so far, by hash: whether each is where it belongs, and linked to its newest.

    16 bytes for each user of the partition.
    """

    def __init__(self, partition: int, num_partitions: int) -> None:
        self.partition, self.num_partitions = partition, num_partitions
        self.is_complete = True
        """False once the users of a segment could not be read: then nobody knows to whom a link should lead."""
        self.hashes = np.zeros(0, np.uint64)
        self.segments, self.rows = np.zeros(0, np.int32), np.zeros(0, np.int32)

    def check(self, findings: Findings, users: pa.Table, segment: int, earlier: Sequence[Earlier | None]) -> None:
        """Notes users of another partition, and links that are missing or not to the newest row."""
        texts = users.column(storage.VALUE)
        found: list[np.ndarray] = []
        for low, high in slices(users.num_rows):
            part = storage.one_piece(texts.slice(low, high - low))
            own = low + np.flatnonzero(hashing.partition_of(part, self.num_partitions) != self.partition)
            findings.add(storage.VALUE, "the user belongs to another partition", own, "users whose hash leads here")
            found.append(hashing.hashes(part))
            at = np.searchsorted(self.hashes, found[-1])
            known = np.flatnonzero(at < len(self.hashes))
            known = known[self.hashes[at[known]] == found[-1][known]]
            wanted_segment, wanted_row = (np.full(high - low, -1, np.int32) for _ in range(2))
            wanted_segment[known], wanted_row[known] = self.segments[at[known]], self.rows[at[known]]
            given = piece(users, storage.PREVIOUS_SEGMENT, low, high), piece(users, storage.PREVIOUS_USER, low, high)
            wrong = np.flatnonzero((given[0] != wanted_segment) | (given[1] != wanted_row))
            wrong = wrong if self.is_complete else wrong[:0]
            # A link to another row than the newest is told only if that row is the user's: two texts may share a hash.
            is_users = [
                wanted_segment[i] < 0
                or (other := earlier[wanted_segment[i]]) is None
                or other.texts[int(wanted_row[i])].as_py() == part[int(i)].as_py()
                for i in wrong.tolist()
            ]
            findings.add(
                storage.PREVIOUS_SEGMENT,
                "the link is not to the newest earlier segment that has the user",
                low + wrong[np.array(is_users, bool)],
                "that segment and its row, or -1 if none has the user",
            )
        self._remember(np.concatenate([np.zeros(0, np.uint64), *found]), segment)

    def _remember(self, hashes: np.ndarray, segment: int) -> None:
        both = np.concatenate([self.hashes, hashes])
        segments = np.append(self.segments, np.full(len(hashes), segment, np.int32))
        rows = np.append(self.rows, np.arange(len(hashes), dtype=np.int32))
        order = np.argsort(both, kind="stable")
        both = both[order]
        newest = np.append(both[1:] != both[:-1], True)[
            : len(both)
        ]  # the last of equals: stable keeps segments in order
        self.hashes, self.segments, self.rows = both[newest], segments[order][newest], rows[order][newest]


def check_items(findings: Findings, items: pa.Table, schema: Schema) -> None:
    """The unknown item in row 0, and the others in order of their text."""
    if not items.num_rows:
        findings.say(None, "there is no row for the unknown item", "it is row 0")
        return
    not_ascending(findings, items.column(storage.VALUE))
    first = {name: items.column(name)[0].as_py() for name in items.column_names}
    unknown: dict[str, bool] = {storage.VALUE: first[storage.VALUE] == ""}
    dense = {d.name: d for d in schema.dense}
    for f in features_of(schema, "items"):
        value = first[f.name]
        if f.name in dense:
            d = dense[f.name]
            read = transformed(np.array([value]), d.transform)
            unknown[f.name] = bool(np.isclose(read, d.mean, rtol=1e-5, atol=1e-5 * d.std)[0])
        else:
            unknown[f.name] = not np.any(value)
    for name, is_unknown in unknown.items():
        if not is_unknown:
            what = f"column {name!r} of the unknown item has the value {first[name]!r}"
            findings.add(name, what, np.zeros(1, np.int64), "an empty text, id 0, an empty bag, the mean, or zeros")
