"""The data set that new rows are appended to: what they must agree with, and where they go on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemkit.data import storage
from gemkit.data.schema import Schema
from gemkit.data.source import Source
from gemkit.errors import GemkitError

COLUMNS = ("user", "timestamp", "surface", "example_id", "item")
"""Columns of the source that the manifest names."""


@dataclass(frozen=True)
class Base:
    """A dataset folder of one segment or more."""

    folder: Path
    manifest: dict[str, Any]
    schema: Schema

    @property
    def segment(self) -> int:
        """Number of the new segment."""
        return len(self.manifest["segments"])

    @property
    def num_partitions(self) -> int:
        return int(self.manifest["partitions"])

    @property
    def num_examples(self) -> int:
        return int(self.manifest["rows"]["examples"])

    @property
    def newest_s(self) -> int:
        """Of examples and events."""
        return max(int(s["last_s"]) for s in self.manifest["segments"])

    def vocabulary_files(self, table: str) -> list[Path]:
        """The files that hold a table's ids, in order."""
        files = [storage.vocabulary_file(table, s) for s in range(self.segment)]
        return [self.folder / name for name in files if name in self.manifest["files"]]

    def open(self, segment: int, partition: int, name: str) -> pa.Table | None:
        """A table of a shard, or None if the data set has no such tables."""
        file = f"{storage.partition_folder(segment, partition)}/{name}"
        return storage.open_table(self.folder / file) if file in self.manifest["files"] else None

    def kind(self, partition: int, name: str, column: str) -> Any:
        """The type in which a column is stored."""
        table = self.open(0, partition, name)
        assert table is not None
        return table.schema.field(column).type


def check_same_declaration(source: Source, declared: Schema, base: Base) -> None:
    """Refuses rows whose columns do not mean what the data set's mean.

    Args:
        declared: The source's schema, with nothing learned.

    Raises:
        GemkitError: Something is declared otherwise.
    """
    for part in dataclasses.fields(Schema):
        if part.name in ("name", "streams", "surfaces"):
            continue
        new, old = (_declared(getattr(s, part.name)) for s in (declared, base.schema))
        if new != old:
            raise _differs(part.name, new, old, base)
    for name in COLUMNS:
        old = base.manifest["columns"][name]
        if getattr(source, name) != old:
            raise _differs(name, getattr(source, name), old, base)


def _declared(values: Any) -> Any:
    """Without what is learned from data."""
    if not isinstance(values, tuple):
        return values
    learned = {"mean": 0.0, "std": 1.0, "width": 1, "num_embeddings": 1}

    def bare(value: Any) -> Any:
        fields = {f.name for f in dataclasses.fields(value)}
        keep = {"num_embeddings"} if getattr(value, "hashed", False) else set()
        return dataclasses.replace(value, **{k: v for k, v in learned.items() if k in fields - keep})

    return tuple(bare(v) for v in values)


def _differs(name: str, new: Any, old: Any, base: Base) -> GemkitError:
    if isinstance(new, tuple) and isinstance(old, tuple):
        changed = [v for v in (*new, *old) if (v in new) != (v in old)]
        what = f": {', '.join(dict.fromkeys(v.name for v in changed))}" if changed else ", in another order"
    else:
        what = f": {new!r} in place of {old!r}"
    return GemkitError(
        f"the declaration differs from that of the data set in {name!r}{what}",
        where=str(base.folder),
        allowed="the declaration that the data set was built with",
        fix="declare the same, or build a data set anew from all files",
    )
