"""Histories read from runs in several partitions and segments, against a reference that filters a list."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemkit.config.run import StreamWindow
from gemkit.data import histories, storage
from gemkit.data.collate import Reading, collate
from gemkit.data.dataset import Dataset
from gemkit.data.schema import CategoricalFeature, EventField, Schema, Table, Task
from gemkit.data.shards import Rows, Shard
from gemkit.errors import GemkitError

PARTITIONS, STREAMS = 2, ("view", "click", "buy")
SCHEMA = Schema(
    name="log",
    tables=(Table(name="what", num_embeddings=1000),),
    categorical=(CategoricalFeature(name="what", table="what"),),
    event_fields=(EventField(name="what", table="what"),),
    streams=STREAMS,
    tasks=(Task(name="click"),),
)


class Event(NamedTuple):
    user: int
    time: int
    stream: int
    what: int


class Example(NamedTuple):
    user: int
    time: int


Day = tuple[list[Event], list[Example]]


def in_memory(days: list[Day]) -> Dataset:
    """Shards of the days' logs, made from lists; user u is in partition u % PARTITIONS."""
    newest: dict[int, tuple[int, int]] = {}
    shards = []
    for segment, (all_events, all_examples) in enumerate(days):
        found = dict(newest)
        for partition in range(PARTITIONS):
            events = sorted((e for e in all_events if e.user % PARTITIONS == partition), key=lambda e: (e.user, e.time))
            examples = sorted(e for e in all_examples if e.user % PARTITIONS == partition)
            users = sorted({r.user for r in (*events, *examples)})
            start = [sum(e.user < u for e in events) for u in users]
            before = [newest.get(u, (-1, -1)) for u in users]
            end = [sum(e.user < x.user or (e.user == x.user and e.time < x.time) for e in events) for x in examples]
            keys = sorted(set(examples))
            columns = {
                storage.EXAMPLE_ID: np.arange(len(examples)),
                storage.SPLIT: np.zeros(len(examples), np.int8),
                storage.TIMESTAMP: np.array([x.time for x in examples], np.int64),
                storage.WEIGHT: np.ones(len(examples), np.float32),
                storage.SURFACE: np.zeros(len(examples), np.int32),
                storage.GROUP: np.zeros(len(examples), np.int64),
                storage.HISTORY: np.array([keys.index(x) for x in examples], np.int32),
                storage.USER: np.array([users.index(x.user) for x in examples], np.int32),
                storage.HISTORY_END: np.array(end, np.int64),
                "what": np.array([x.user for x in examples], np.int32),
                "click": np.zeros(len(examples), np.int8),
            }
            own = {
                storage.START: np.array(start, np.int64),
                storage.PREVIOUS_SEGMENT: np.array([s for s, _ in before], np.int32),
                storage.PREVIOUS_USER: np.array([u for _, u in before], np.int32),
            }
            log = {
                storage.TIMESTAMP: np.array([e.time for e in events], np.int32),
                storage.STREAM: np.array([e.stream for e in events], np.uint8),
                "what": np.array([e.what for e in events], np.uint16 if segment % 2 else np.int32),
            }
            shards.append(Shard(Rows(table(columns), SCHEMA), Rows(table(own), SCHEMA), log, None))
            found |= {u: (segment, i) for i, u in enumerate(users)}
        newest = found
    manifest = {"partitions": PARTITIONS, "segments": [{}] * len(days)}
    return Dataset(Path(), SCHEMA, manifest, shards)


def table(columns: dict[str, np.ndarray]) -> pa.Table:
    return storage.table_of(columns)


def expected(days: list[Day], segment: int, example: Example, reading: Reading) -> list[Event]:
    """The naive reference: all events so far, filtered, sorted and cut."""
    log = [e for events, _ in days[: segment + 1] for e in events if e.user == example.user and e.time < example.time]
    log.sort(key=lambda e: e.time)  # stable: equal times stay in the order of the log
    if not reading.streams and not reading.streams_apart:
        return log[-reading.max_history :]
    windows = {s.name: s.max_history for s in reading.streams} or dict.fromkeys(STREAMS, reading.max_history)
    kept = {n: [e for e in log if e.stream == STREAMS.index(n)][-k:] if k else [] for n, k in windows.items()}
    if reading.streams_apart:
        return [e for n in windows for e in kept[n]]
    left = defaultdict(int, {STREAMS.index(n): len(v) for n, v in kept.items()})
    chosen = []
    for event in reversed(log):
        if left[event.stream]:
            left[event.stream] -= 1
            chosen.append(event)
    return chosen[::-1]


def check(days: list[Day], reading: Reading) -> None:
    data = in_memory(days)
    rows = np.arange(data.num_examples)
    batch = collate(data, rows[::-1].copy(), reading)
    h = batch.history
    assert h is not None
    examples = [
        (segment, x)
        for segment, (_, all_examples) in enumerate(days)
        for partition in range(PARTITIONS)
        for x in sorted(x for x in all_examples if x.user % PARTITIONS == partition)
    ][::-1]
    assert batch.size == len(examples)
    for i, (segment, x) in enumerate(examples):
        u = int(h.history_index[i])
        run = slice(int(h.offsets[u]), int(h.offsets[u + 1]))
        wanted = expected(days, segment, x, reading)
        assert batch.ids["events.what"][run].tolist() == [e.what for e in wanted]
        assert h.stream[run].tolist() == [e.stream for e in wanted]
        assert h.ages[run].tolist() == [x.time - e.time for e in wanted]
        assert int(batch.ids["what"][i]) == x.user and int(batch.timestamp[i]) == x.time
        if h.stream_offsets is not None:
            names = [s.name for s in reading.streams] or list(STREAMS)
            bounds = h.stream_offsets[u * len(names) : (u + 1) * len(names) + 1].tolist()
            found = [
                (h.stream[a:b] == STREAMS.index(n)).all()
                for n, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)
            ]
            assert bounds[0] == run.start and bounds[-1] == run.stop and all(found)
    if reading.shares_histories:
        assert len(h.offsets) - 1 == len({(segment, *x) for segment, x in examples})
    lengths = data.history_lengths(rows, reading.max_history)
    plain = Reading(max_history=reading.max_history)
    assert lengths[::-1].tolist() == [len(expected(days, s, x, plain)) for s, x in examples]


@st.composite
def logs(draw: st.DrawFn) -> list[Day]:
    """One to four days of a few users; each day begins after the last second of the one before; times tie often."""
    days, time = [], 0
    for _ in range(draw(st.integers(1, 4))):
        moments = st.integers(time, time + draw(st.integers(0, 6)))
        events = draw(
            st.lists(st.builds(Event, st.integers(0, 4), moments, st.integers(0, 2), st.integers(1, 999)), max_size=30)
        )
        examples = draw(st.lists(st.builds(Example, st.integers(0, 5), moments), max_size=12))
        days.append((events, examples))
        time = max([time, *(e.time for e in events), *(e.time for e in examples)]) + 1
    days[0][1].append(Example(0, 0))
    return days


windows = st.lists(st.sampled_from(STREAMS), unique=True, max_size=3).flatmap(
    lambda names: st.tuples(*(st.builds(StreamWindow, name=st.just(n), max_history=st.integers(0, 5)) for n in names))
)
readings = st.builds(
    Reading,
    max_history=st.integers(1, 12),
    shares_histories=st.booleans(),
    streams=windows,
    streams_apart=st.booleans(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(logs(), readings, st.sampled_from([0, 64]))
def test_histories_are_those_of_a_filtered_list(days: list[Day], reading: Reading, short: int) -> None:
    # short = 0: every window is copied run by run; 64: event by event.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "SHORT", short)
        check(days, reading)


def test_a_history_over_three_segments_is_cut_to_its_newest_events() -> None:
    days: list[Day] = [([Event(1, t, t % 3, t + 1) for t in range(10 * d, 10 * d + 10)], []) for d in range(3)]
    days[0][1].append(Example(0, 0))
    days[2][1].extend([Example(1, 25), Example(1, 30), Example(4, 30)])
    data = in_memory(days)
    rows = np.arange(1, 4)
    of = {
        int(t) * 10 + int(n): r
        for r, t, n in zip(rows, data.columns[storage.TIMESTAMP][rows], data.columns["what"][rows], strict=True)
    }
    for row, first, last in ((of[251], 3, 24), (of[301], 8, 29)):
        batch = collate(data, np.array([row]), Reading(max_history=22))
        assert batch.ids["events.what"].tolist() == list(range(first + 1, last + 2))
    assert collate(data, np.array([of[304]]), Reading()).ids["events.what"].tolist() == []
    check(days, Reading(max_history=22))


def test_an_unknown_stream_is_refused() -> None:
    data = in_memory([([Event(0, 0, 0, 1)], [Example(0, 1)])])
    with pytest.raises(GemkitError, match="no stream 'clik'") as caught:
        collate(data, np.array([0]), Reading(streams=(StreamWindow(name="clik"),)))
    assert caught.value.fix and "click" in caught.value.fix
