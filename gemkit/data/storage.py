"""The dataset folder: which files it has, and how they are written and opened.

    manifest.json                    format version, counts, hashes, and what it was built from
    schema.json                      what the columns mean (schema-0001.json after segment 1 was appended, and so on)
    vocabularies/<table>/0000.arrow  the ids that segment 0 added, in order; id 1 is the first row of the first file
    segments/0000/items.arrow        the items of segment 0 and their features (if the data set has an item table)
    segments/0000/000/               partition 0 of segment 0; a user is in the same partition of every segment
        examples.arrow               one row per example, ids encoded, sorted by split, user, time
        users.arrow                  one row per user: text, features, where the user's events begin
        events.arrow                 the event log, sorted by user and time (if the data set has histories)
    .verified.json                   which of these files have been checked since they changed (`gemkit.data.verify`)

A segment is never changed: new days of logs become a new segment. Columns that begin with _ are gemkit's own.
Uncompressed Arrow IPC of one record batch: memory-mapped by gemkit, opened as it is by pandas, polars and DuckDB.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data.checks import is_name
from gemkit.errors import GemkitError

FORMAT_VERSION = 3
"""Raised whenever older dataset folders can no longer be read as they are; they are then rebuilt."""

EXAMPLES, EVENTS, USERS, ITEMS = "examples.arrow", "events.arrow", "users.arrow", "items.arrow"
VOCABULARIES, SEGMENTS, SCHEMA, MANIFEST = "vocabularies", "segments", "schema.json", "manifest.json"

# Columns of examples.arrow. `_history` numbers the distinct (user, timestamp) of a partition in stored order; examples
# that share it see the same events at the same ages. `_history_end` is the first row of events.arrow that the example
# does not see; its history begins where its user's events begin, and goes on backwards in earlier segments.
EXAMPLE_ID, SPLIT, TIMESTAMP, WEIGHT, SURFACE, GROUP = (
    "_example_id", "_split", "_timestamp", "_weight", "_surface", "_group"
)  # fmt: skip
HISTORY, HISTORY_END, USER, ITEM = "_history", "_history_end", "_user", "_item"

HISTORY_SHARD, HISTORY_USER = "_history_shard", "_history_user"
"""In no file: where the history of an example lies that was encoded against a data set (`gemkit.data.encode`)."""

# Columns of users.arrow: the text; the first of the user's events (they end where the next user's begin); segment and
# row (in the same partition) of the newest earlier segment that has the user, -1 if none has. items.arrow: the text.
VALUE, START, PREVIOUS_SEGMENT, PREVIOUS_USER = "_value", "_start", "_previous_segment", "_previous_user"

# Columns of events.arrow, besides `_timestamp`.
STREAM = "_stream"

# Further columns of examples.arrow, for each task that declares them.
DELAY, TRUTH = "_delay_", "_truth_"


def segment_folder(segment: int) -> str:
    """Relative to the dataset folder."""
    return f"{SEGMENTS}/{segment:04d}"


def schema_file(segment: int) -> str:
    """The schema that came with a segment; the newest segment's is the data set's."""
    return SCHEMA if segment == 0 else f"schema-{segment:04d}.json"


def partition_folder(segment: int, partition: int) -> str:
    """Relative to the dataset folder."""
    return f"{SEGMENTS}/{segment:04d}/{partition:03d}"


def vocabulary_file(table: str, segment: int) -> str:
    """Relative to the dataset folder. Columns `value` and `count`."""
    return f"{VOCABULARIES}/{table}/{segment:04d}.arrow"


def narrowest(largest: int) -> np.dtype[Any]:
    """The smallest type for numbers from 0 to `largest`: an event takes as few bytes as it can."""
    return (
        np.dtype(np.min_scalar_type(largest))
        if largest < 2**16
        else np.dtype(np.int32 if largest < 2**31 else np.int64)
    )


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


def one_piece(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array: the mapped file's own where it is in one piece (`combine_chunks` would copy it)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


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
    if (
        name == SCHEMA
        or re.fullmatch(r"schema-[0-9]{4}\.json", name)
        or re.fullmatch(rf"{SEGMENTS}/[0-9]{{4}}/({ITEMS}|[0-9]{{3}}/({EXAMPLES}|{EVENTS}|{USERS}))", name)
    ):
        return True
    match = re.fullmatch(rf"{VOCABULARIES}/(.*)/[0-9]{{4}}\.arrow", name)
    return match is not None and is_name(match[1])


def refuse_other_folder(folder: Path) -> None:
    """
    Raises:
        GemkitError: `folder` holds something that is not a data set.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise GemkitError(
            f"{folder} exists and is not a data set", where=str(folder), fix="choose another folder, or remove it"
        )


def take_place(fresh: Path, folder: Path) -> None:
    """Puts a finished folder in the place of `folder`, which is removed if it is there."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
