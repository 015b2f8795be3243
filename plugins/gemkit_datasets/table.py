"""The user's own tables: CSV, Parquet or Arrow files, and a config that says what their columns mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.config.run import DataConfig
from gemkit.data.fetch import sha256_of
from gemkit.data.files import with_lists
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split, Stream, TableRule
from gemkit.data.streamfile import read_files
from gemkit.errors import GemkitError
from gemkit.interfaces import DataRecipe

FILES = ("examples", "events", "users", "items")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig(DataConfig):
    """A table of examples and, if histories are wanted, a table of events. Columns that are not named are not read."""

    name: str = "table"
    examples: str = option(
        "",
        "File of examples, one a row: .csv, .tsv (also .gz), .parquet, .arrow, .feather; a pattern such as"
        " 'logs/*.parquet' names several, in order of their names.",
    )
    events: str | None = option(None, "File of events, one a row; null: no histories.")
    users: str | None = option(None, "File of users, one a row: the features declared `of: users`.")
    items: str | None = option(None, "File of items, one a row: the features declared `of: items`.")
    folder: str | None = option(
        None, "Folder of the built data set inside `root`; null: named after the examples' file."
    )
    dense: tuple[DenseFeature, ...] = option((), "Columns of numbers.")
    categorical: tuple[CategoricalFeature, ...] = option((), "Columns of ids, or of bags of ids.")
    vectors: tuple[VectorFeature, ...] = option((), "Columns of content embeddings.")
    event_fields: tuple[EventField, ...] = option((), "Columns of `events` that say what happened.")
    tasks: tuple[Task, ...] = option((), "Columns of labels: 0, 1 or empty.")
    user: str | None = option(None, "Column, in both files, that says whose history is whose.")
    item: str | None = option(None, "Column, in examples and items, that says which item an example is about.")
    timestamp: str | None = option(None, "Column, in both files, of seconds since 1970 or of dates.")
    stream: str | None = option(None, "Column of `events` with the kind of event.")
    surface: str | None = option(None, "Column with the name of the surface.")
    weight: str | None = option(None, "Column with the weight of the example in the loss.")
    example_id: str | None = option(None, "Column of unique whole numbers; null: the row's number.")
    group: str | None = option(None, "Column by which gAUC groups examples; null: no gAUC.")
    split: Split = dataclasses.field(
        default_factory=Split, metadata={"doc": "How examples are divided into train, valid and test."}
    )
    tables: tuple[TableRule, ...] = option((), "Id spaces that are hashed, or have a `min_count` of their own.")
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)
    separator: str = option("|", "In text columns: what parts the ids of a bag, or the numbers of a vector.")

    @property
    def folder_name(self) -> str:
        return self.folder or "table-" + re.sub(r"[*?\[\]]", "", Path(self.examples).name.split(".")[0]).strip("-_")

    def paths(self, field: str) -> list[Path]:
        """The files that a field names."""
        value = getattr(self, field)
        if not value:
            return []
        path = Path(value)
        if not set("*?[") & set(path.name) or path.is_file():
            return [path]
        return sorted(path.parent.glob(path.name))

    @property
    def build_options(self) -> dict[str, Any]:
        """The declaration, and size and time of the files: a changed file is read again."""
        options = {k: v for k, v in super().build_options.items() if k != "folder"}
        stats = [p.stat() if p.is_file() else None for field in FILES for p in self.paths(field)]
        return options | {"files": [[s.st_size, s.st_mtime_ns] if s else None for s in stats]}


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
        for field in FILES:
            found = self.config.paths(field)
            missing = [p for p in found if not p.is_file()]
            if missing or (getattr(self.config, field) and not found):
                raise GemkitError(
                    f"there is no file {missing[0] if missing else getattr(self.config, field)}",
                    where=f"data.{field}",
                    fix="paths are relative to this folder",
                )

    def source(self, folder: Path) -> Source:
        config = self.config
        files = {field: config.paths(field) for field in FILES}
        user = config.user if files["events"] or files["users"] else None  # else nobody asks whose row it is
        item = config.item if files["items"] else None

        def table(field: str, text: list[str | None], others: list[str | None], numbers: list[str | None]) -> Any:
            """The columns of a file: those that are asked for, and the features that it holds."""
            text += [f.name for f in config.categorical if f.of == field]
            vectors = [v.name for v in config.vectors if v.of == field]
            lists = [f.name for f in config.categorical if f.of == field and f.multi] + vectors
            numbers += [f.name for f in config.dense if f.of == field]
            return read_files(
                files[field],
                text=[*text, *vectors],
                numbers=numbers,
                others=others,
                then=lambda piece: with_lists(piece, lists, config.separator),
            )

        text = [user, item, config.surface, config.group]
        if config.split.by == "column":
            text.append(config.split.column)
        numbers = [config.weight, *(c for t in config.tasks for c in (t.name, t.delay, t.truth))]
        tables = {"examples": table("examples", text, [config.timestamp, config.example_id], numbers)}
        if files["events"]:
            fields = [e.name for e in config.event_fields]
            tables["events"] = table("events", [config.user, config.stream, *fields], [config.timestamp], [])
        for field, key in (("users", user), ("items", item)):
            if files[field]:
                found = table(field, [key], [], [])
                tables[field] = pa.concat_tables(found.read()) if isinstance(found, Stream) else found
        names = [f.name for f in dataclasses.fields(Source) if f.name not in ("name", *FILES)]
        declared = {name: getattr(config, name) for name in names if hasattr(config, name)}
        declared |= {"user": user, "item": item}
        titles: dict[str, Any] = {f"{field}_title": paths[0].name for field, paths in files.items() if paths}
        return Source(
            name=config.folder_name,
            files={p.name: sha256_of(p) for paths in files.values() for p in paths},
            **tables,
            **titles,
            **declared,
        )
