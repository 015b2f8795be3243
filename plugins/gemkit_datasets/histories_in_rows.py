"""Histories that stand inside the rows of a file, turned into an event log: each is stored once, rows point at it.

Such files say in which order the events of a history came, but not when. Events get their position in the log for a
time, and a row whose history has n events the time n, so that it sees the positions 0 to n - 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa

from gemkit.data.source import Stream

SEPARATOR = "^"
LOG, POSITION, KIND = "history", "position", "kind"
"""Columns that are added: whose log it is, the time in it, and the list from which an event comes."""

MAX_LOGS = 8
"""Of one user, in which a history is looked for."""

MAX_EVENTS = 1 << 18
"""In one piece of the event log."""


class Place(NamedTuple):
    """Where a row's history is.

    Attributes:
        log: Name of the log.
        time: The row sees the events of the log before it.
        first: Position of the first event that is new in the log.
        new: For each list of the row, (start, end) of its elements that are new; appended list by list.
    """

    log: str
    time: int
    first: int
    new: tuple[tuple[int, int], ...]


class Placer(Protocol):
    """Remembers what it has put into which log.

    Attributes:
        all_columns: Whether `place` is given every column of the one kind of event, or the first column of each kind.
    """

    all_columns: ClassVar[bool]

    def place(self, user: str, lists: Sequence[str], counts: Sequence[int]) -> Place:
        """Finds or makes room for a row's history.

        Args:
            lists: Each list of the row as text.
            counts: Number of elements of each.
        """
        ...


class GrowingLogs:
    """For histories that are beginnings of one list per user: the longest is the user's log.

    Several lists (clicked, not clicked) are merged in the order in which they grow from row to row. A history that
    does not fit the user's log begins another, so whatever the rows hold, each sees exactly its own history.
    """

    all_columns: ClassVar[bool] = False

    def __init__(self) -> None:
        self._logs: dict[str, list[_Log]] = {}

    def place(self, user: str, lists: Sequence[str], counts: Sequence[int]) -> Place:
        logs = self._logs.setdefault(user, [])
        for log in logs[-MAX_LOGS:]:
            if log.fits(lists, counts):
                return log.place(lists, counts)
        logs.append(_Log(f"{user}:{len(logs)}" if logs else user, len(lists)))
        return logs[-1].place(lists, counts)


class _Log:
    """One log: its lists as text, how many elements each has, and of which list each event is."""

    __slots__ = ("counts", "lists", "name", "order")

    def __init__(self, name: str, num_lists: int) -> None:
        self.name = name
        self.lists = [""] * num_lists
        self.counts = [0] * num_lists
        self.order = bytearray()

    def fits(self, lists: Sequence[str], counts: Sequence[int]) -> bool:
        """Whether the log's events up to some time are this history, or could become so by appending."""
        if not all(_begins(a, b) or _begins(b, a) for a, b in zip(lists, self.lists, strict=True)):
            return False
        total = sum(counts)
        if total > len(self.order):
            return all(count >= have for count, have in zip(counts, self.counts, strict=True))
        return all(self.order.count(i, 0, total) == count for i, count in enumerate(counts))

    def place(self, lists: Sequence[str], counts: Sequence[int]) -> Place:
        first, total = len(self.order), sum(counts)
        if total <= first:
            return Place(self.name, total, first, tuple((0, 0) for _ in counts))
        new = tuple(zip(self.counts, counts, strict=True))
        for i, (start, end) in enumerate(new):
            self.order += bytes([i]) * (end - start)
        self.lists, self.counts = list(lists), list(counts)
        return Place(self.name, total, first, new)


def _begins(text: str, longer: str) -> bool:
    return not text or text == longer or longer.startswith(text + SEPARATOR)


class SeparateLogs:
    """For histories of which nothing is known but their content: a new log whenever a user's history changes."""

    all_columns: ClassVar[bool] = True

    def __init__(self) -> None:
        self._newest: dict[str, tuple[bytes, int]] = {}

    def place(self, user: str, lists: Sequence[str], counts: Sequence[int]) -> Place:
        # 16 bytes instead of the text: there may be a million users.
        digest = hashlib.md5("|".join(lists).encode(), usedforsecurity=False).digest()
        known, number = self._newest.get(user, (b"", -1))
        total = max(counts)
        if known == digest:
            return Place(f"{user}:{number}", total, total, ((0, 0),))
        self._newest[user] = digest, number + 1
        return Place(f"{user}:{number + 1}", total, 0, ((0, total),))


Lists = Mapping[str, Mapping[str, str]]
"""Kind of event -> event field -> column with the list. Elements of equal place in the columns are one event."""


def streams(
    pieces: Callable[[], Iterator[pa.Table]],
    num_bytes: int,
    user: str,
    lists: Lists,
    placer: Callable[[], Placer],
) -> tuple[Stream, Stream]:
    """Examples and events of rows that hold their histories.

    Args:
        pieces: Reads the rows from the first.
        placer: `GrowingLogs` or `SeparateLogs`.
    """

    def examples() -> Iterator[pa.Table]:
        for piece, places in _placed(pieces(), user, lists, placer()):
            columns = {n: piece[n] for n in piece.column_names if n not in _columns(lists)}
            columns[LOG] = pa.array([p.log for p in places], pa.string())
            columns[POSITION] = pa.array([p.time for p in places], pa.int64())
            yield pa.table(columns).replace_schema_metadata(piece.schema.metadata)

    def events() -> Iterator[pa.Table]:
        for piece, places in _placed(pieces(), user, lists, placer()):
            table = _events(piece, places, lists)
            for start in range(0, table.num_rows, MAX_EVENTS):
                yield table.slice(start, MAX_EVENTS)

    return Stream(examples, num_bytes), Stream(events, num_bytes)


def _placed(
    pieces: Iterator[pa.Table], user: str, lists: Lists, placer: Placer
) -> Iterator[tuple[pa.Table, list[Place]]]:
    keys = _columns(lists) if placer.all_columns else [next(iter(fields.values())) for fields in lists.values()]
    for piece in pieces:
        users = piece[user].to_pylist()
        rows = zip(*(piece[key].to_pylist() for key in keys), strict=True)
        yield (
            piece,
            [placer.place(u, row, [_count(t) for t in row]) for u, row in zip(users, rows, strict=True)],
        )


def _events(piece: pa.Table, places: list[Place], lists: Lists) -> pa.Table:
    rows = [i for i, p in enumerate(places) if any(end > start for start, end in p.new)]
    chosen = piece.take(pa.array(rows, pa.int64()))
    texts = {column: chosen[column].to_pylist() for column in _columns(lists)}
    fields = dict.fromkeys(field for columns in lists.values() for field in columns)
    values: dict[str, list[str]] = {field: [] for field in (LOG, KIND, *fields)}
    positions: list[int] = []
    for k, i in enumerate(rows):
        place = places[i]
        position = place.first
        for (kind, columns), (start, end) in zip(lists.items(), place.new, strict=True):
            count = end - start
            values[LOG] += [place.log] * count
            values[KIND] += [kind] * count
            positions += range(position, position + count)
            position += count
            for field in fields:
                values[field] += _elements(texts[columns[field]][k], end)[start:]
    table = pa.table({name: pa.array(v, pa.string()) for name, v in values.items()})
    return table.append_column(POSITION, pa.array(positions, pa.int64()))


def _elements(text: str, count: int) -> list[str]:
    """The first `count` elements of a list; one that is shorter lacks its oldest."""
    cells = text.split(SEPARATOR) if text else []
    return [""] * (count - len(cells)) + cells[:count]


def _count(text: str) -> int:
    return text.count(SEPARATOR) + 1 if text else 0


def _columns(lists: Lists) -> list[str]:
    return [column for columns in lists.values() for column in columns.values()]
