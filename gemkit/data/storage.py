"""The dataset folder: which files it has, and how they are written and opened.

    examples.arrow           one row per example, ids encoded; columns that begin with _ are gemkit's own
    events.arrow             the event log, sorted by user and time (if the data set has histories)
    users.arrow              row i is the text of user i of the event log
    vocabularies/<table>.arrow   row i is the text of id i + 1
    schema.json              what the columns mean
    manifest.json            format version, counts, hashes, and what it was built from

Uncompressed Arrow IPC: memory-mapped by gemkit, opened as it is by pandas, polars and DuckDB.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.errors import GemkitError

FORMAT_VERSION = 2
"""Raised whenever older dataset folders can no longer be read as they are; they are then rebuilt."""

EXAMPLES, EVENTS, USERS = "examples.arrow", "events.arrow", "users.arrow"
VOCABULARIES, SCHEMA, MANIFEST = "vocabularies", "schema.json", "manifest.json"

SPLIT, TIMESTAMP, WEIGHT, SURFACE, GROUP, EXAMPLE_ID = (
    "_split", "_timestamp", "_weight", "_surface", "_group", "_example_id"
)  # fmt: skip
HISTORY, HISTORY_START, HISTORY_END = "_history", "_history_start", "_history_end"
USER, STREAM = "_user", "_stream"


def write_table(table: pa.Table, path: Path) -> None:
    """Writes one record batch, so that every column is one contiguous array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def open_table(path: Path) -> pa.Table:
    """A memory-mapped table."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise GemkitError(
            f"cannot read {path.name}: {error}", where=str(path.parent), fix="delete the folder and build it again"
        ) from error


def table_of(columns: dict[str, Any]) -> pa.Table:
    """A table of NumPy and Arrow arrays; a two-dimensional array becomes a column of vectors."""
    return pa.table({name: _column(v) if isinstance(v, np.ndarray) else v for name, v in columns.items()})


def _column(values: np.ndarray) -> pa.Array:
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_json(value: Any, path: Path) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None if `folder` holds no data set."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    Raises:
        GemkitError: `folder` holds something that is not a data set.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise GemkitError(
            f"{folder} exists and is not a data set", where=str(folder), fix="choose another folder, or remove it"
        )
    fresh = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
