"""The dataset folder: which files it has, and how they are written and opened.

    examples.arrow           one row per example, ids encoded; columns that begin with _ are gemkit's own
    events.arrow             the event log, sorted by user and time (if the data set has histories)
    users.arrow              row i is the text of user i of the event log
    vocabularies/<table>.arrow   row i is the text of id i + 1
    schema.json              what the columns mean
    manifest.json            format version, counts, hashes, and what it was built from
    .verified.json           which of these files have been checked since they changed (`gemkit.data.verify`)

Uncompressed Arrow IPC: memory-mapped by gemkit, opened as it is by pandas, polars and DuckDB.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data.checks import is_name
from gemkit.errors import GemkitError
from gemkit.runs.files import writing_failed

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
    """A memory-mapped table, whose lengths and offsets are within the file.

    Raises:
        GemkitError: There is no such file, or it is no Arrow file as `write_table` writes them.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        if table.nbytes > path.stat().st_size:
            raise pa.ArrowInvalid("its columns are larger than the file")
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise GemkitError(
            f"cannot read {path.name}: {reason}", where=str(path.parent), fix="delete the folder and build it again"
        ) from error
    return table


def table_of(columns: dict[str, Any]) -> pa.Table:
    """A table of NumPy and Arrow arrays; a two-dimensional array becomes a column of vectors."""
    return pa.table({name: _column(v) if isinstance(v, np.ndarray) else v for name, v in columns.items()})


def _column(values: np.ndarray) -> pa.Array:
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_json(value: Any, path: Path) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """JSON as `write_json` writes it.

    Raises:
        ValueError: It is no JSON, too deep, or names a key twice.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None if `folder` holds no data set."""
    try:
        value = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def digest_of(manifest: dict[str, Any]) -> str:
    """The sha256 of a manifest's content, whatever its layout; its own `digest` left out."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_file_name(name: str) -> bool:
    """Whether a dataset folder may have a file of this name, relative to it. No path leads out of the folder."""
    match = re.fullmatch(rf"{VOCABULARIES}/(.*)\.arrow", name)
    return name in (EXAMPLES, EVENTS, USERS, SCHEMA) or (match is not None and is_name(match[1]))


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    Raises:
        GemkitError: `folder` holds something that is not a data set, or the disk cannot be written.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise GemkitError(
            f"{folder} exists and is not a data set", where=str(folder), fix="choose another folder, or remove it"
        )
    fresh = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        raise writing_failed(folder, error.errno or errno.EIO) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
