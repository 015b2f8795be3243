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
from gemkit.data.bounds import check_events, check_examples, check_histories, check_schema, check_texts
from gemkit.data.schema import Schema
from gemkit.data.source import SPLITS
from gemkit.data.verify import REBUILD, read_checked_manifest, verify_files
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
            GemkitError: There is none, it has another format version, a file has changed since it was built, or
                holds what no build writes: an id out of bounds, a history that points outside the event log.
        """
        manifest = read_checked_manifest(folder)
        verify_files(folder, manifest)
        rows, files = manifest["rows"], manifest["files"]
        schema = _schema(folder, files)

        def opened(name: str) -> tuple[pa.Table, str]:
            if name not in files:
                raise GemkitError(f"the manifest does not name {name}", where=str(folder), fix=REBUILD)
            return storage.open_table(folder / name), str(folder / name)

        for table in schema.tables:
            texts = {"value": pa.string(), "count": pa.int64()}
            vocabulary, where = opened(f"{storage.VOCABULARIES}/{table.name}.arrow")
            check_texts(vocabulary, texts, table.num_embeddings - 1, where)
        examples, where = opened(storage.EXAMPLES)
        check_examples(schema, examples, rows, where)
        events = None
        if schema.has_events:
            users, where_users = opened(storage.USERS)
            check_texts(users, {"value": pa.string()}, None, where_users)
            events, where_events = opened(storage.EVENTS)
            check_events(schema, events, users.num_rows, rows, where_events)
            check_histories(examples, events, where)
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


def _schema(folder: Path, files: Mapping[str, str]) -> Schema:
    path = folder / storage.SCHEMA
    if storage.SCHEMA not in files:
        raise GemkitError(f"the manifest does not name {storage.SCHEMA}", where=str(folder), fix=REBUILD)
    try:
        schema: Schema = from_mapping(Schema, storage.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise GemkitError(f"the schema is damaged: {error}", where=str(path), fix=REBUILD) from error
    except GemkitError as error:
        raise GemkitError(error.what, where=f"{path}: {error.where}", allowed=error.allowed, fix=REBUILD) from error
    check_schema(schema, str(path))
    return schema


def _array(column: pa.Array) -> np.ndarray:
    # A plain ndarray over the mapped file; slicing the np.memmap subclass would be four times slower.
    values: np.ndarray = column.to_numpy(zero_copy_only=True)
    return values
