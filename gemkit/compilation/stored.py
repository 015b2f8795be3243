"""What is kept: counted, and removed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from gemkit.compilation.place import is_key


class Kept(NamedTuple):
    """The compiled code of one environment.

    Attributes:
        graphs: Graphs that torch.compile will find.
    """

    folder: Path
    graphs: int
    files: int
    bytes: int


def contents(own: Path) -> list[Kept]:
    """What is in this environment's folder, and in those of other environments beside it.

    Args:
        own: This environment's folder, or the one that the user has named.
    """
    found = []
    for folder in _folders(own):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        graphs = sum(1 for _ in folder.glob("fxgraph/*/*"))
        found.append(Kept(folder, graphs, len(sizes), sum(sizes)))
    return found


def remove(own: Path) -> int:
    """Removes it, and those of other environments; returns the bytes."""
    kept = contents(own)
    for row in kept:
        shutil.rmtree(row.folder)
    return sum(row.bytes for row in kept)


def _folders(own: Path) -> list[Path]:
    if not is_key(own.name):  # the user's own choice: what lies beside it is not ours
        return [own] if own.is_dir() else []
    return sorted(path for path in own.parent.glob("*") if is_key(path.name) and path.is_dir())
