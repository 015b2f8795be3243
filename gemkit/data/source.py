"""What a data recipe hands to `gemkit data build`: tables, and what their columns mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gemkit.config.fields import Config, option
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "valid", "test")
MAX_SECONDS = 10**11
"""The year 5138. A larger timestamp is in milliseconds or finer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Config):
    """How examples are divided into train, valid and test.

    `time` puts the newest `test` of the examples into test, the newest `valid` of the rest's share before
    them into valid; examples of equal timestamp stay together. `boundary` names the times themselves. `column` reads a
    column of split names.
    """

    by: str = option("time", "Rule.", choices=("time", "boundary", "column"))
    valid: float = option(0.1, "Share of the examples in valid.", gt=0, lt=1)
    test: float = option(0.1, "Share of the examples in test.", gt=0, lt=1)
    column: str = option("split", "Column of 'train', 'valid' and 'test', with `by: column`.")
    valid_from_s: int = option(0, "First second of valid, with `by: boundary`.", ge=-MAX_SECONDS, le=MAX_SECONDS)
    test_from_s: int = option(0, "First second of test, with `by: boundary`.", ge=-MAX_SECONDS, le=MAX_SECONDS)

    def check(self) -> None:
        if self.valid + self.test >= 1:
            raise GemkitError(
                f"valid + test = {self.valid + self.test:g} leaves nothing to train on", where="valid", allowed="< 1"
            )
        if self.by == "boundary" and self.valid_from_s >= self.test_from_s:
            raise GemkitError(
                f"valid_from_s = {self.valid_from_s} is not before test_from_s = {self.test_from_s}",
                where="valid_from_s",
                allowed="less than test_from_s",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRule(Config):
    """How the text of an id space becomes ids: by a vocabulary, or by hashing."""

    name: str = option("", "Name of the table.")
    min_count: int | None = option(None, "As the source's `min_count`, for this table; null: the source's.", ge=1)
    hash_rows: int | None = option(
        None, "Hash into this many rows, without a vocabulary; null: a vocabulary of what training has seen.", ge=1
    )
    hash_seed: int = option(0, "Seed of the hash.", ge=0)


@dataclasses.dataclass(frozen=True)
class Stream:
    """A table that may be larger than memory: read piece by piece, always the same rows in the same order.

    Attributes:
        read: Starts again from the first row at each call. Pieces of at most a few hundred thousand rows, all with
            the same columns and types.
        num_bytes: About how much all pieces take in memory; decides into how many partitions the build divides them.
    """

    read: Callable[[], Iterator[pa.Table]]
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Tables and the meaning of their columns; `gemkit.data.build` writes the dataset folder.

    Attributes:
        examples: One row per example, in its original order.
        events: One row per event, in any order, or None. Examples see only events of the same `user` with a
            timestamp *strictly before* their own: ties are excluded, so an example's own event never leaks.
        users, items: One row per user or item with its features (those declared `of` users or items), or None. Of
            who has no row the features are unknown: id 0, an empty bag, the mean, a vector of zeros.
        tables: Id spaces that differ from "a vocabulary of what training has seen `min_count` times".
        dense, categorical, vectors, event_fields, tasks: Their `name` is the column. Of a categorical feature
            or an event field an empty `table` means "a table of the feature's own name". Sizes and
            statistics are filled in by the build, from the training split.
        user: Column, in examples, events and users, that says whose history is whose.
        item: Column, in examples and items, that says which item an example is about.
        timestamp: Column, in both tables, of seconds since 1970.
        stream: Column of `events` with the kind of event, or None if there is one kind.
        weight, surface, example_id, group: Columns of `examples`, or None.
        min_count: An id seen less often than this in the training split becomes "unknown" (0).
        files: Names and sha256 of the source files, for the manifest.
        examples_title, events_title: What errors call the tables; a file name helps.
    """

    name: str
    examples: pa.Table | Stream
    events: pa.Table | Stream | None = None
    users: pa.Table | None = None
    items: pa.Table | None = None
    tables: tuple[TableRule, ...] = ()
    dense: tuple[DenseFeature, ...] = ()
    categorical: tuple[CategoricalFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()
    event_fields: tuple[EventField, ...] = ()
    tasks: tuple[Task, ...] = ()
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    stream: str | None = None
    weight: str | None = None
    surface: str | None = None
    example_id: str | None = None
    group: str | None = None
    split: Split = dataclasses.field(default_factory=Split)
    min_count: int = 1
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    examples_title: str = "examples"
    events_title: str = "events"
    users_title: str = "users"
    items_title: str = "items"
