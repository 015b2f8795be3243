"""Which checkpoints a run folder keeps: best, last, and a few older ones in case the last is damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import Stored
from gemkit.runs.files import writing_failed

BEST, LAST = "best.safetensors", "last.safetensors"


def save_last(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], before: int | None, keep: int
) -> None:
    """Writes last.safetensors; the one before stays as step-<its step>.safetensors, the newest `keep` of them.

    Args:
        before: Step from which the run went on or at which it was last saved; None: there is no checkpoint yet.

    Raises:
        GemkitError: It cannot be written. The ones before are as they were.
    """
    last = folder / LAST
    if keep and before is not None and before != step and last.exists():
        name = folder / f"step-{before:08d}.safetensors"
        if not name.exists():  # it does if the run went on from there because the last was damaged
            _also_as(last, name)
    checkpoint.save(last, tensors, state)
    for path in older(folder)[keep:]:
        path.unlink(missing_ok=True)


def older(folder: Path) -> list[Path]:
    """The step-<n>.safetensors files, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def load_last(
    folder: Path, say: Callable[[str], None], backend: ParallelBackend | None = None
) -> tuple[Stored, dict[str, Any], Path] | None:
    """The newest checkpoint that can be read, its state and its file; None if the run has not written any.

    Args:
        say: Prints a line about each one that is damaged.
        backend: Of the processes that load it: each reads some of the parts, and all take the same checkpoint.

    Raises:
        GemkitError: All are damaged.
    """
    candidates = [path for path in (folder / LAST, *older(folder)) if path.exists()]
    rank, world_size = (backend.rank, backend.world_size) if backend else (0, 1)
    first: GemkitError | None = None
    for path in candidates:
        error = found = None
        try:
            found = checkpoint.load(path)
            found[0].verify(rank, world_size)
        except GemkitError as problem:
            error = problem
        if not (backend.agree(error is not None) if backend else error):
            assert found is not None
            return *found, path
        error = error or GemkitError(f"{path.name} cannot be read by another process", where=str(path))
        first = first or error
        say(f"note: {error.what}; trying the one before")
    if first is not None:
        raise first
    return None


def check_space(folder: Path, num_bytes: int) -> None:
    """
    Raises:
        GemkitError: There is less free than a checkpoint of this size needs.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise writing_failed(folder, error.errno or 0) from error
    if free < num_bytes:
        raise GemkitError(
            f"a checkpoint needs {num_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free",
            where=str(folder),
            fix="free some space, or write elsewhere (runs=...)",
        )


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed left half-written. Only for the one that holds the run's lock."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _also_as(path: Path, name: Path) -> None:
    """A second name for a file, so that its first name can be taken without a moment in which it is gone."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
        temporary.replace(name)
    except OSError as error:
        raise writing_failed(name, error.errno or 0) from error
