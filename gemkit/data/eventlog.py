"""The event log of a build: sorted once by user and time, with every example a pointer into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.arrays import as_array, offsets_of
from gemkit.data.columns import Codes, Columns
from gemkit.data.source import Source
from gemkit.data.vocabulary import encode, make_vocabulary
from gemkit.errors import GemkitError


@dataclass(frozen=True)
class EventLog:
    """Events in order of (user, time); equal times keep their order in the source.

    Attributes:
        user, timestamp, stream: (events,) user row, seconds, index into `streams`.
        start, end: (examples,) the events of the example's user that are strictly older than the example.
        users: Text of each user row.
        history: (examples,) one number for each distinct (user, timestamp): such examples see the same events at
            the same ages. Numbered by user, then time.
    """

    events: Columns
    order: np.ndarray
    user: np.ndarray
    timestamp: np.ndarray
    stream: np.ndarray
    streams: tuple[str, ...]
    start: np.ndarray
    end: np.ndarray
    history: np.ndarray
    example_user: np.ndarray
    users: pa.Array

    def codes(self, name: str) -> Codes:
        """A categorical column of the log, in the log's order."""
        column = self.events.codes(name)
        return Codes(column.codes[self.order], column.values)

    def seen_by(self, chosen: np.ndarray) -> np.ndarray:
        """Which events are in the history of at least one of the `chosen` examples. Shape: (examples,) -> (events,)."""
        last = np.zeros(len(self.users), np.int64)
        np.maximum.at(last, self.example_user[chosen], self.end[chosen])
        seen: np.ndarray = np.arange(len(self.user)) < last[self.user]
        return seen


def sort_events(source: Source, examples: Columns, timestamp: np.ndarray) -> EventLog | None:
    """Sorts the log and points each example at its history. Ties are excluded: no example sees its own event.

    Raises:
        GemkitError: There are no events, or a column holds what it must not.
    """
    if source.events is None or source.user is None or source.timestamp is None:
        return None
    events = Columns(source.events, source.events_title)
    if events.num_rows == 0:
        raise GemkitError("there are no events", where=events.title, fix="leave the events out, or fill the table")
    (event_user, example_user), users = _shared_codes(
        events.codes(source.user, required=True), examples.codes(source.user, required=True)
    )
    event_time = events.seconds(source.timestamp)
    if source.stream:
        names = events.codes(source.stream, required=True)
        vocabulary = make_vocabulary([(names, np.ones(len(names.codes), bool))], 1)
        stream, streams = encode(names, vocabulary) - 1, tuple(vocabulary.column("value").to_pylist())
    else:
        stream, streams = np.zeros(events.num_rows, np.int32), ("event",)

    order = np.lexsort((event_time, event_user))
    user, time = event_user[order], event_time[order]
    offsets = offsets_of(np.bincount(user, minlength=len(users)))
    event_key, example_key = combined_keys(user, time, example_user, timestamp)
    return EventLog(
        events=events,
        order=order,
        user=user.astype(np.int32),
        timestamp=time,
        stream=stream[order].astype(np.int32),
        streams=streams,
        start=offsets[example_user],
        end=np.searchsorted(event_key, example_key, side="left"),
        history=np.unique(example_key, return_inverse=True)[1].astype(np.int64),
        example_user=example_user,
        users=users,
    )


def _shared_codes(a: Codes, b: Codes) -> tuple[tuple[np.ndarray, np.ndarray], pa.Array]:
    """Two columns coded alike, by the order of text, and the text."""
    values = pa.chunked_array([a.values, b.values]).unique().sort()
    recoded = [as_array(pc.index_in(c.values, value_set=values)).astype(np.int64)[c.codes] for c in (a, b)]
    return (recoded[0], recoded[1]), values


def combined_keys(
    user: np.ndarray, time: np.ndarray, example_user: np.ndarray, example_time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One number for (user, time) that sorts like the pair, for events and for examples."""
    both = np.concatenate([time, example_time])
    low, high = (int(both.min()), int(both.max())) if len(both) else (0, 0)
    span = high - low + 1
    if (int(max(user.max(initial=0), example_user.max(initial=0))) + 1) * span >= 2**63:
        distinct, both = np.unique(both, return_inverse=True)
        low, span = 0, len(distinct)
    both = both - low
    return user * span + both[: len(time)], example_user * span + both[len(time) :]
