"""Rules of one partition of one segment: the order of events and examples, and what each example sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.schema import Schema
from gemkit.data.source import SPLITS
from gemkit.data.validation.columns import NARROW, Column, feature_columns, piece, whole
from gemkit.data.validation.schema import has_users
from gemkit.data.validation.violation import Findings, slices

LEAK = "the history goes up to event {value}, which is not older than the example"


def event_columns(schema: Schema, first_s: int, last_s: int) -> dict[str, Column]:
    """What the columns of events.arrow must be."""
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    return {
        storage.TIMESTAMP: Column((pa.int32(), pa.int64()), first_s, last_s),
        storage.STREAM: Column(NARROW, 0, len(schema.streams) - 1),
    } | {e.name: Column(NARROW, 0, sizes[e.table] - 1) for e in schema.event_fields}


def example_columns(
    schema: Schema, first_s: int, last_s: int, num_users: int, num_events: int, num_items: int | None
) -> dict[str, Column]:
    """What the columns of examples.arrow must be.

    Args:
        num_items: Rows of the segment's items, or None if there is no such table.
    """
    columns = {
        storage.EXAMPLE_ID: Column((pa.int64(),)),
        storage.SPLIT: Column((pa.int8(),), 0, len(SPLITS) - 1),
        storage.TIMESTAMP: Column((pa.int64(),), first_s, last_s),
        storage.WEIGHT: Column((pa.float32(),), 0),
        storage.SURFACE: Column((pa.int32(),), 0, len(schema.surfaces) - 1),
        storage.GROUP: Column((pa.int64(),), 0),
        storage.HISTORY: Column((pa.int32(),), 0),
    }
    if has_users(schema):
        columns[storage.USER] = Column((pa.int32(),), 0, num_users - 1)
    if schema.has_events:
        columns[storage.HISTORY_END] = Column((pa.int64(),), 0, num_events)
    if num_items is not None:
        columns[storage.ITEM] = Column((pa.int32(),), 0, num_items - 1)
    for task in schema.tasks:
        columns[task.name] = Column((pa.int8(),), 0, 1, nullable=True)
        if task.delay is not None:
            columns[storage.DELAY + task.name] = Column((pa.float32(),), 0, nullable=True)
        if task.truth is not None:
            columns[storage.TRUTH + task.name] = Column((pa.float64(),), 0, 1)
    return columns | feature_columns(schema, "examples")


def check_events(findings: Findings, events: pa.Table, start: np.ndarray) -> None:
    """Time goes forwards within each user's run."""
    times = whole(events, storage.TIMESTAMP)
    for low, high in slices(len(times) - 1):
        back = low + 1 + np.flatnonzero(times[low + 1 : high + 1] < times[low:high])
        at = np.searchsorted(start, back)
        begins = np.append(start, -1)[at] == back
        rows = back[~begins]
        findings.add(
            storage.TIMESTAMP,
            "the event is older than the one before, of the same user",
            rows,
            "ascending",
            times[rows],
        )


def check_examples(findings: Findings, examples: pa.Table, counts: dict[str, int], has_user_column: bool) -> None:
    """Examples stand by split, user and time, and are numbered by history."""
    found = np.zeros(len(SPLITS), np.int64)
    for low, high in slices(examples.num_rows):
        before = max(low - 1, 0)  # each slice is compared with the row before it, too
        split = piece(examples, storage.SPLIT, before, high)
        found += np.bincount(split[low - before :], minlength=len(SPLITS))
        keys = [split, piece(examples, storage.TIMESTAMP, before, high)]
        if storage.USER in examples.column_names:
            keys.insert(1, piece(examples, storage.USER, before, high))
        if not has_user_column:
            keys = [split]  # the examples' order is the source's
        first = before + 1
        findings.add(
            storage.SPLIT, "the examples are not in order of split", first + _descents([split]), "train, valid, test"
        )
        if storage.USER in examples.column_names:
            ordered = first + np.setdiff1d(_descents(keys), _descents([split]))
            findings.add(storage.TIMESTAMP, "the examples are not in order of user and time", ordered, "ascending")
        history = piece(examples, storage.HISTORY, before, high)
        step = np.diff(history.astype(np.int64))
        changed = np.zeros(len(step), bool)
        for values in keys[1:]:
            changed |= values[1:] != values[:-1]
        split_changed = split[1:] != split[:-1]
        if not has_user_column:
            wrong = step != 1
        elif storage.USER in examples.column_names:
            # The last of one split and the first of the next may or may not count as one.
            wrong = (step != changed) & ~(split_changed & ((step == 0) | (step == 1)) & ~changed)
        else:
            wrong = (step < 0) | (step > 1) | (changed & (step == 0))
        findings.add(
            storage.HISTORY,
            "the number does not go up by 1 exactly where user or time changes",
            first + np.flatnonzero(wrong),
            "consecutive numbers",
        )
        if low == 0 and len(history):
            findings.add(storage.HISTORY, "the first number is {value}", np.flatnonzero(history[:1]), "0", history[:1])
    for i, name in enumerate(SPLITS):
        if found[i] != counts[name]:
            what = f"the {name} split has {found[i]:,} rows, the manifest says {counts[name]:,}"
            findings.say(storage.SPLIT, what, f"{counts[name]:,}")


def _descents(keys: list[np.ndarray]) -> np.ndarray:
    """Where a row sorts before the one above it by `keys`, the first being the most significant; less 1."""
    below, equal = np.zeros(len(keys[0]) - 1, bool), np.ones(len(keys[0]) - 1, bool)
    for values in keys:
        below |= equal & (values[1:] < values[:-1])
        equal &= values[1:] == values[:-1]
    return np.flatnonzero(below)


def check_labels(findings: Findings, examples: pa.Table, schema: Schema) -> None:
    """A label is known only where its mask allows it, a delay only where the label is 1."""
    for task in schema.tasks:
        for low, high in slices(examples.num_rows):
            label = piece(examples, task.name, low, high, fill=-1)
            if task.masked_by is not None:
                masker = piece(examples, task.masked_by, low, high, fill=-1)
                rows = low + np.flatnonzero((label >= 0) & (masker != 1))
                findings.add(
                    task.name,
                    f"the label is known where that of {task.masked_by!r}, which masks it, is not 1",
                    rows,
                    "an empty cell",
                )
            if task.delay is not None:
                delay = piece(examples, storage.DELAY + task.name, low, high, fill=-1)
                rows = low + np.flatnonzero((delay >= 0) & (label != 1))
                findings.add(
                    storage.DELAY + task.name, f"there is a delay where {task.name!r} is not 1", rows, "an empty cell"
                )


def check_boundaries(findings: Findings, examples: pa.Table, boundaries: dict[str, Any]) -> None:
    """Each example is in the split that its time says."""
    edges = np.array([boundaries["valid_from_s"], boundaries["test_from_s"]])
    for low, high in slices(examples.num_rows):
        wanted = np.searchsorted(edges, piece(examples, storage.TIMESTAMP, low, high), side="right")
        split = piece(examples, storage.SPLIT, low, high)
        rows = np.flatnonzero(split != wanted)
        findings.add(
            storage.SPLIT,
            "the example is in split {value}, which its time is not of",
            low + rows,
            f"valid from {edges[0]}, test from {edges[1]}",
            split[rows],
        )


def check_histories(
    findings: Findings, examples: pa.Table, start: np.ndarray, times: np.ndarray, newest_before: np.ndarray
) -> None:
    """Each example sees the events of its user that are strictly older than itself: no other, and no fewer.

    Args:
        start: (users,) where each user's events begin.
        times: (events,) of the events.
        newest_before: (users,) time of the user's newest event in earlier segments; all of those are seen.
    """
    ends = np.append(start[1:], len(times))[: len(start)]
    for low, high in slices(examples.num_rows):
        user, seen, now = (
            piece(examples, n, low, high) for n in (storage.USER, storage.HISTORY_END, storage.TIMESTAMP)
        )
        outside = (seen < start[user]) | (seen > ends[user])
        findings.add(
            storage.HISTORY_END,
            "the history ends at row {value} of the events, which is another user's",
            low + np.flatnonzero(outside),
            "a row of the example's own user, or the first after them",
            seen[outside],
        )
        some = np.flatnonzero(~outside & (seen > start[user]))
        leaks = times[seen[some] - 1] >= now[some]
        findings.add(
            storage.HISTORY_END,
            LEAK,
            low + some[leaks],
            "only events strictly before the example",
            seen[some][leaks] - 1,
        )
        more = np.flatnonzero(~outside & (seen < ends[user]))
        missed = times[seen[more]] < now[more]
        findings.add(
            storage.HISTORY_END,
            "event {value} is older than the example, which does not see it",
            low + more[missed],
            "all events strictly before the example",
            seen[more][missed],
        )
        old = newest_before[user] >= now
        findings.add(
            storage.TIMESTAMP,
            "an event of an earlier segment, of time {value}, is not older than the example that sees it",
            low + np.flatnonzero(old),
            "only events strictly before the example",
            newest_before[user][old],
        )
