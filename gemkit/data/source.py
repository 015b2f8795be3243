"""What a data recipe hands to `gemkit data build`: tables, and what their columns mean."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gemkit.config.fields import Config, option
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Config):
    """How examples are divided into train, valid and test.

    `time` puts the newest `test` of the examples into test, the newest `valid` of the rest's share before
    them into valid; examples of equal timestamp stay together. `column` reads a column of split names.
    """

    by: str = option("time", "Rule.", choices=("time", "column"))
    valid: float = option(0.1, "Share of the examples in valid.", gt=0, lt=1)
    test: float = option(0.1, "Share of the examples in test.", gt=0, lt=1)
    column: str = option("split", "Column of 'train', 'valid' and 'test', with `by: column`.")

    def check(self) -> None:
        if self.valid + self.test >= 1:
            raise GemkitError(
                f"valid + test = {self.valid + self.test:g} leaves nothing to train on", where="valid", allowed="< 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Tables in memory and the meaning of their columns; `gemkit.data.build` writes the dataset folder.

    Attributes:
        examples: One row per example, in its original order.
        events: One row per event, in any order, or None. Examples see only events of the same `user` with a
            timestamp *strictly before* their own: ties are excluded, so an example's own event never leaks.
        dense, categorical, vectors, event_fields, tasks: Their `name` is the column. Of a categorical feature
            or an event field an empty `table` means "a table of the feature's own name". Sizes and
            statistics are filled in by the build, from the training split.
        user: Column, in both tables, that says whose history is whose.
        timestamp: Column, in both tables, of seconds since 1970.
        stream: Column of `events` with the kind of event, or None if there is one kind.
        weight, surface, example_id, group: Columns of `examples`, or None.
        min_count: An id seen less often than this in the training split becomes "unknown" (0).
        files: Names and sha256 of the source files, for the manifest.
        examples_title, events_title: What errors call the tables; a file name helps.
    """

    name: str
    examples: pa.Table
    events: pa.Table | None = None
    dense: tuple[DenseFeature, ...] = ()
    categorical: tuple[CategoricalFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()
    event_fields: tuple[EventField, ...] = ()
    tasks: tuple[Task, ...] = ()
    user: str | None = None
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
