"""Writing files so that nothing half-written is ever found under the final name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from gemkit.errors import GemkitError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes the name `path`.

    On an error it is removed, and an older file of that name stays as it was.

    Raises:
        GemkitError: The disk is full, read-only, or the folder is missing or may not be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        raise writing_failed(path, number) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file, or leaves things as they were.

    Raises:
        GemkitError: As `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writing_failed(path: Path, number: int) -> GemkitError:
    """The error for a file or folder that could not be written, from the system's error number."""
    fixes = {
        errno.ENOSPC: "free some space, or write elsewhere",
        errno.EDQUOT: "free some of your quota, or write elsewhere",
        errno.EROFS: "write elsewhere",
        errno.EACCES: "change the permissions of the folder, or write elsewhere",
        errno.EPERM: "change the permissions of the folder, or write elsewhere",
        errno.ENOENT: "make the folder first",
    }
    return GemkitError(f"cannot write {path.name}: {os.strerror(number)}", where=str(path), fix=fixes.get(number))


def _errno(error: Exception) -> int | None:
    """The system's error number; safetensors' errors carry it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match.group(1)) if match else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
