"""The user's own tables: CSV, Parquet or Arrow files, and a config that says what their columns mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.config.run import DataConfig
from gemkit.data.fetch import sha256_of
from gemkit.data.files import read_table, with_lists
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split
from gemkit.errors import GemkitError
from gemkit.interfaces import DataRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig(DataConfig):
    """A table of examples and, if histories are wanted, a table of events. Columns that are not named are not read."""

    name: str = "table"
    examples: str = option("", "File of examples, one a row: .csv, .tsv (also .gz), .parquet, .arrow, .feather.")
    events: str | None = option(None, "File of events, one a row; null: no histories.")
    folder: str | None = option(
        None, "Folder of the built data set inside `root`; null: named after the examples' file."
    )
    dense: tuple[DenseFeature, ...] = option((), "Columns of numbers.")
    categorical: tuple[CategoricalFeature, ...] = option((), "Columns of ids, or of bags of ids.")
    vectors: tuple[VectorFeature, ...] = option((), "Columns of content embeddings.")
    event_fields: tuple[EventField, ...] = option((), "Columns of `events` that say what happened.")
    tasks: tuple[Task, ...] = option((), "Columns of labels: 0, 1 or empty.")
    user: str | None = option(None, "Column, in both files, that says whose history is whose.")
    timestamp: str | None = option(None, "Column, in both files, of seconds since 1970 or of dates.")
    stream: str | None = option(None, "Column of `events` with the kind of event.")
    surface: str | None = option(None, "Column with the name of the surface.")
    weight: str | None = option(None, "Column with the weight of the example in the loss.")
    example_id: str | None = option(None, "Column of unique whole numbers; null: the row's number.")
    group: str | None = option(None, "Column by which gAUC groups examples; null: no gAUC.")
    split: Split = dataclasses.field(
        default_factory=Split, metadata={"doc": "How examples are divided into train, valid and test."}
    )
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)
    separator: str = option("|", "In text columns: what parts the ids of a bag, or the numbers of a vector.")

    @property
    def folder_name(self) -> str:
        return self.folder or "table-" + Path(self.examples).name.split(".")[0]

    @property
    def build_options(self) -> dict[str, Any]:
        """The declaration, and size and time of the files: a changed file is read again."""
        options = {k: v for k, v in super().build_options.items() if k != "folder"}
        paths = [Path(p) for p in (self.examples, self.events) if p]
        return options | {"files": [[p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else None for p in paths]}


@component("data", TableConfig)
class TableRecipe(DataRecipe):
    """Your own CSV, Parquet or Arrow files.

    The least that works is a file, a feature, a task and a way to split:
    `data=table data.examples=clicks.csv data.timestamp=time "data.categorical=[{name: item}]"
    "data.tasks=[{name: click}]"`
    """

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    def fetch(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        """There is nothing to fetch: checks that the files are there."""
        if not self.config.examples:
            raise GemkitError("no file is named", where="data.examples", fix="data.examples=PATH")
        for field in ("examples", "events"):
            path = getattr(self.config, field)
            if path and not Path(path).is_file():
                raise GemkitError(
                    f"there is no file {path}", where=f"data.{field}", fix="paths are relative to this folder"
                )

    def source(self, folder: Path) -> Source:
        config = self.config
        examples, events = Path(config.examples), Path(config.events) if config.events else None
        listed = [f.name for f in config.categorical if f.multi] + [v.name for v in config.vectors]
        shared = [config.user, config.timestamp]
        user = config.user if events else None  # without events nobody asks whose row it is
        text = [user, config.surface, config.group, *(f.name for f in config.categorical)]
        if config.split.by == "column":
            text.append(config.split.column)
        numbers = [config.weight, *(f.name for f in config.dense), *(t.name for t in config.tasks)]
        table = read_table(
            examples,
            text=[*text, *(v.name for v in config.vectors)],
            numbers=numbers,
            others=[config.timestamp, config.example_id],
        )
        event_table = None
        if events:
            fields = [e.name for e in config.event_fields]
            event_table = read_table(events, text=[config.user, config.stream, *fields], numbers=[], others=shared)
        names = [f.name for f in dataclasses.fields(Source) if f.name not in ("name", "examples", "events")]
        declared = {name: getattr(config, name) for name in names if hasattr(config, name)}
        return Source(
            name=config.folder_name,
            examples=with_lists(table, listed, config.separator),
            events=event_table,
            files={p.name: sha256_of(p) for p in (examples, events) if p},
            examples_title=examples.name,
            events_title=events.name if events else "events",
            **declared,
        )
