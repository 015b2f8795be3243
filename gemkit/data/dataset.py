"""A dataset folder, opened: plain arrays over memory-mapped files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.config.fields import from_mapping
from gemkit.data import storage
from gemkit.data.schema import Schema
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError


class Dataset:
    """Examples, events and vocabularies of one data set. Open it with `Dataset.open`.

    Attributes:
        schema: What the columns mean.
        manifest: Counts, hashes and origin.
        columns: Examples' columns by name: (examples,). Labels are int8 with -1 where masked.
        bags: Bags by feature: offsets (examples+1,) and ids back to back.
        vectors: Content embeddings by feature: (examples, width).
        events: The event log's columns by name: (events,). Empty without histories.
    """

    def __init__(
        self, folder: Path, schema: Schema, manifest: dict[str, Any], examples: pa.Table, events: pa.Table | None
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.manifest = manifest
        self.bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.vectors: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}
        wide = {f.name: f.width for f in schema.vectors}
        multi = {f.name for f in schema.categorical if f.multi}
        for name in examples.column_names:
            column = examples.column(name).combine_chunks()
            if name in multi:
                self.bags[name] = _array(column.offsets), _array(column.values)
            elif name in wide:
                self.vectors[name] = _array(column.values).reshape(-1, wide[name])
            elif name in schema.task_names:
                self.columns[name] = _array(column.fill_null(-1))
            else:
                self.columns[name] = _array(column)
        self.events = {n: _array(events.column(n).combine_chunks()) for n in events.column_names} if events else {}

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Opens a dataset folder.

        Raises:
            GemkitError: There is none, it has another format version, or files and manifest disagree.
        """
        manifest = storage.read_manifest(folder)
        if manifest is None:
            raise GemkitError(f"{folder} is not a data set", where=str(folder), fix="make it with `gemkit data build`")
        version = manifest.get("format_version")
        if version != storage.FORMAT_VERSION:
            raise GemkitError(
                f"{folder} has dataset format {version}",
                where=str(folder / storage.MANIFEST),
                allowed=f"format {storage.FORMAT_VERSION}, which this gemkit reads",
                fix="delete the folder and build it again",
            )
        schema = from_mapping(Schema, json.loads((folder / storage.SCHEMA).read_text(encoding="utf-8")))
        examples = storage.open_table(folder / storage.EXAMPLES)
        events = storage.open_table(folder / storage.EVENTS) if schema.has_events else None
        for what, table in (("examples", examples), ("events", events)):
            rows = table.num_rows if table is not None else 0
            if rows != manifest["rows"][what]:
                raise GemkitError(
                    f"{what} has {rows:,} rows, the manifest says {manifest['rows'][what]:,}",
                    where=str(folder),
                    fix="delete the folder and build it again",
                )
        return cls(folder, schema, manifest, examples, events)

    @property
    def num_examples(self) -> int:
        return int(self.manifest["rows"]["examples"])

    @property
    def num_events(self) -> int:
        return int(self.manifest["rows"]["events"])

    @property
    def fingerprint(self) -> str:
        """Equal for equal contents, wherever they were built from."""
        files: Mapping[str, str] = self.manifest["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> np.ndarray:
        """Rows of the examples in a split, ascending. Shape: (rows,) int64."""
        if name not in SPLITS:
            raise GemkitError(f"unknown split {name!r}", where="split", allowed=", ".join(SPLITS))
        return np.flatnonzero(self.columns[storage.SPLIT] == SPLITS.index(name))

    def vocabulary(self, table: str) -> list[str]:
        """Text of the ids 1, 2, ... of a table."""
        values: list[str] = (
            storage.open_table(self.folder / storage.VOCABULARIES / f"{table}.arrow").column("value").to_pylist()
        )
        return values


def _array(column: pa.Array) -> np.ndarray:
    # A plain ndarray over the mapped file; slicing the np.memmap subclass would be four times slower.
    values: np.ndarray = column.to_numpy(zero_copy_only=True)
    return values
