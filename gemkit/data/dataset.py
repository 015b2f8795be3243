"""A dataset folder, opened: plain arrays over memory-mapped files."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemkit.data import storage
from gemkit.data.arrays import offsets_of, ranges
from gemkit.data.histories import lengths_of, newest
from gemkit.data.order import Places
from gemkit.data.schema import Schema
from gemkit.data.selection import DAY_S, Selection, nothing_left
from gemkit.data.shards import Part, Rows, Shard, joined, located, take
from gemkit.data.source import SPLITS
from gemkit.data.verify import verified
from gemkit.errors import GemkitError


class Dataset:
    """Examples, events and vocabularies of one data set. Open it with `Dataset.open`.

    An example's *row* counts over all shards, in their order; within a shard examples are sorted by split, user, time.

    Attributes:
        schema: What the columns mean.
        manifest: Counts, hashes and origin.
        shards: Partitions 0, 1, ... of segment 0, then those of segment 1, and so on.
        selection: Which examples the splits have.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        manifest: dict[str, Any],
        shards: Sequence[Shard],
        selection: Selection | None = None,
    ) -> None:
        self.folder = folder
        self.selection = selection or Selection()
        self.schema = self.selection.reduced(schema)
        self.manifest = manifest
        self.shards = shards
        self._stream_events: dict[tuple[int, int], np.ndarray] = {}
        self._bases = offsets_of(np.array([s.examples.num_rows for s in shards]))

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Opens a dataset folder.

        Raises:
            GemkitError: There is none, it has another format version, a file has changed since it was built, or
                holds what no build writes: an id out of bounds, a history that points outside the event log.
        """
        manifest, schema = verified(folder)
        shards = []
        for segment in range(len(manifest["segments"])):
            items = _opened(folder, f"{storage.segment_folder(segment)}/{storage.ITEMS}", schema, manifest)
            for partition in range(manifest["partitions"]):
                shards.append(_open_shard(folder, segment, partition, schema, manifest, items))
        return cls(folder, schema, manifest, shards)

    def selected(self, selection: Selection) -> Dataset:
        """The same data set, whose splits have only what the selection leaves.

        Raises:
            GemkitError: It names a surface or a task that is not there.
        """
        return Dataset(self.folder, self.schema, self.manifest, self.shards, selection)

    @property
    def num_examples(self) -> int:
        return int(self._bases[-1])

    @property
    def num_events(self) -> int:
        return int(self.manifest["rows"]["events"])

    @property
    def fingerprint(self) -> str:
        """Equal for equal contents, wherever they were built from."""
        files: Mapping[str, str] = self.manifest["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def origin(self) -> str:
        """Equal for one build and all that was appended to it since: an example id means the same example."""
        first = {n: h for n, h in self.manifest["files"].items() if n.startswith(storage.segment_folder(0) + "/")}
        return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """Examples' columns: ``columns[name][rows]`` gathers. An array, or with several shards a `Column`."""
        return {n: joined([s.examples.columns[n] for s in self.shards]) for n in self.shards[0].examples.columns}

    @functools.cached_property
    def first_s(self) -> int:
        """Time of the first example, seconds since 1970; 0 if the data set has no time."""
        times = [s.examples.columns[storage.TIMESTAMP] for s in self.shards]
        return int(min((t.min() for t in times if len(t)), default=0))

    def days(self, rows: np.ndarray) -> np.ndarray:
        """Days since the midnight (UTC) before the first example. Shape: (n,) -> (n,) float64."""
        since: np.ndarray = self.columns[storage.TIMESTAMP][rows] - self.first_s // DAY_S * DAY_S
        return since / DAY_S

    def known_until_s(self, name: str) -> int | None:
        """Up to when a split's labels are known, seconds since 1970; None: they are final.

        Raises:
            GemkitError: The split has newer examples, or the data set has no time.
        """
        day = self.selection.labels_as_of
        if day is None or name == "test":
            return None
        newest_day = float(self.days(self.split(name)).max(initial=0))
        timed = self.manifest["columns"]["timestamp"]
        if not timed or newest_day >= day:
            reason = f"has examples of day {newest_day:.1f}" if timed else "has no timestamps"
            raise GemkitError(
                f"labels cannot be as of day {day:g}: the {name} split of {self.schema.name!r} {reason}",
                where="data.labels_as_of",
                allowed="a day after all examples that train and validate, of a data set with timestamps",
                fix=f"a later day, or data.{name}_days=[0,{day:g}]" if timed else "data.labels_as_of=null",
            )
        return self.first_s // DAY_S * DAY_S + round(day * DAY_S)

    def pick(self, rows: np.ndarray, days: tuple[float, float] | None, surfaces: Sequence[str] = ()) -> np.ndarray:
        """Those of `rows` in a window of days (the last excluded) and on some surfaces; empty: on all.

        Raises:
            GemkitError: There are days, and the data set has no time.
        """
        keep = np.ones(len(rows), bool)
        if days is not None:
            if not self.manifest["columns"]["timestamp"]:
                raise GemkitError(f"data set {self.schema.name!r} has no timestamps", where="days", fix="name no days")
            found = self.days(rows)
            keep &= (days[0] <= found) & (found < days[1])
        if surfaces:
            numbers = [self.schema.surfaces.index(name) for name in surfaces]
            keep &= np.isin(self.columns[storage.SURFACE][rows], numbers)
        picked: np.ndarray = rows[keep]
        return picked

    def places(self, name: str) -> Places:
        """The rows of a split by place.

        Raises:
            GemkitError: The selection leaves no example of it.
        """
        if not self.selection.picks(name):
            return Places.ranges(*self.split_ranges(name))
        window = self.selection.window(name)
        stored = Places.ranges(*self.split_ranges(name)).all() if window is None else np.arange(self.num_examples)
        rows = self.pick(stored, window, self.selection.surfaces)
        if not len(rows):
            last = int(self.days(np.arange(self.num_examples)).max())
            raise nothing_left(self.selection, name, self.schema, last)
        return Places.chosen(rows, self._bases)

    def split_ranges(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """First and last row (excluded) of a stored split in each shard. Shape: (shards,), (shards,) int64."""
        if name not in SPLITS:
            raise GemkitError(f"unknown split {name!r}", where="split", allowed=", ".join(SPLITS))
        number = SPLITS.index(name)
        pieces = [s.examples.columns[storage.SPLIT] for s in self.shards]  # ascending within a shard
        starts, ends = (np.array([np.searchsorted(p, number, side) for p in pieces]) for side in ("left", "right"))
        return self._bases[:-1] + starts, self._bases[:-1] + ends

    def split(self, name: str) -> np.ndarray:
        """Rows of the examples in a split, ascending. Shape: (rows,) int64."""
        return self.places(name).all()

    def located(self, rows: np.ndarray) -> list[Part]:
        """Where rows of examples lie."""
        return located(rows, self._bases)

    def take(self, name: str, parts: list[Part], size: int, of: str = "examples") -> np.ndarray:
        """A column of `size` located examples, or of their users or items."""
        if of == "examples":
            return take([s.examples.columns[name] for s in self.shards], parts, size)
        return take([self._holder(s, of).columns[name] for s in self.shards], self._owners(parts, of), size)

    def take_vectors(self, name: str, parts: list[Part], size: int, of: str = "examples") -> np.ndarray:
        """Content embeddings of `size` located examples, or of their users or items. Shape: (size, width)."""
        return take([self._holder(s, of).vectors[name] for s in self.shards], self._owners(parts, of), size)

    def take_bags(self, name: str, parts: list[Part], size: int, of: str = "examples") -> tuple[np.ndarray, np.ndarray]:
        """Bags of `size` located examples, or of their users or items: ids back to back, and offsets (size+1,)."""
        parts = self._owners(parts, of)
        starts, lengths = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for part in parts:
            offsets, _ = self._holder(self.shards[part.shard], of).bags[name]
            starts[part.where] = offsets[part.rows]
            lengths[part.where] = offsets[part.rows + 1] - offsets[part.rows]
        offsets = offsets_of(lengths)
        if len(parts) == 1:
            return self._holder(self.shards[parts[0].shard], of).bags[name][1][
                ranges(starts, starts + lengths)
            ], offsets
        ids = np.empty(offsets[-1], np.int64)
        for part in parts:
            there = ranges(starts[part.where], starts[part.where] + lengths[part.where])
            here = ranges(offsets[:-1][part.where], offsets[1:][part.where])
            ids[here] = self._holder(self.shards[part.shard], of).bags[name][1][there]
        return ids, offsets

    def history_keys(self, rows: np.ndarray) -> np.ndarray:
        """One number for each distinct (user, timestamp), ascending with the row. Shape: (rows,) int64."""
        keys = np.empty(len(rows), np.int64)
        for part in self.located(rows):
            # A shard has no more histories than examples, so its numbers fit where its rows are counted.
            keys[part.where] = (
                self._bases[part.shard] + self.shards[part.shard].examples.columns[storage.HISTORY][part.rows]
            )
        return keys

    def history_lengths(self, rows: np.ndarray, max_history: int) -> np.ndarray:
        """Events of each example's history that are read with this window. Shape: (rows,) int64."""
        return lengths_of(newest(self, rows, max_history), len(rows))

    def users(self, shard: int) -> dict[str, np.ndarray]:
        """The columns of a shard's users."""
        return self._holder(self.shards[shard], "users").columns

    def shard_number(self, segment: np.ndarray, beside: int) -> np.ndarray:
        """The shards of other segments that have the users of shard `beside`: those of the same partition."""
        partitions: int = self.manifest["partitions"]
        return segment * partitions + beside % partitions

    def stream_events(self, shard: int, stream: int) -> np.ndarray:
        """Rows of a shard's events that are of one stream, ascending; made at first use. Shape: (n,)."""
        if (shard, stream) not in self._stream_events:
            of_stream = self.shards[shard].events[storage.STREAM] == stream
            kind = storage.narrowest(len(of_stream))
            self._stream_events[shard, stream] = np.flatnonzero(of_stream).astype(kind)
        return self._stream_events[shard, stream]

    def vocabulary(self, table: str) -> list[str]:
        """Text of the ids 1, 2, ... of a table. A hashed table has none."""
        return [
            str(text) for file in self.vocabulary_files(table) for text in storage.open_table(file)["value"].to_pylist()
        ]

    def vocabulary_files(self, table: str) -> list[Path]:
        """The files that hold a table's ids, in order."""
        names = [storage.vocabulary_file(table, s) for s in range(len(self.manifest["segments"]))]
        return [self.folder / name for name in names if name in self.manifest["files"]]

    @staticmethod
    def _holder(shard: Shard, of: str) -> Rows:
        holder = {"examples": shard.examples, "users": shard.users, "items": shard.items}[of]
        assert holder is not None  # the schema was checked against the files
        return holder

    def _owners(self, parts: list[Part], of: str) -> list[Part]:
        """The users or items of located examples."""
        if of == "examples":
            return parts
        name = storage.USER if of == "users" else storage.ITEM
        return [p._replace(rows=self.shards[p.shard].examples.columns[name][p.rows]) for p in parts]


def _open_shard(
    folder: Path, segment: int, partition: int, schema: Schema, manifest: dict[str, Any], items: Rows | None
) -> Shard:
    def opened(name: str) -> Rows | None:
        return _opened(folder, f"{storage.partition_folder(segment, partition)}/{name}", schema, manifest)

    examples, users, events = opened(storage.EXAMPLES), opened(storage.USERS), opened(storage.EVENTS)
    assert examples is not None
    return Shard(examples, users, events.columns if events else {}, items)


def _opened(folder: Path, name: str, schema: Schema, manifest: dict[str, Any]) -> Rows | None:
    return Rows(storage.open_table(folder / name), schema) if name in manifest["files"] else None
