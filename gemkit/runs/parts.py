"""A checkpoint that several processes write: each its own blocks, and the first one the file that names them.

    checkpoints/parts/3f2a-000004-1of4.safetensors     written by every process, each under its own name
    checkpoints/last.safetensors                       written by the first, when all of these are there

Until the last step the checkpoint before is the one that counts, so a process may be killed at any moment. Processes
need a file system that they share, and speak to each other before they write, not while.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend
from gemkit.pieces import Pieces, written_here
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import PARTS

PATIENCE_S, LOOK_EVERY_S = 1800.0, 0.02


class Snapshot(NamedTuple):
    """What this process writes of a checkpoint.

    Attributes:
        main: Tensors for the checkpoint's own file (of the first process only).
        part: Blocks for a file of this process, by key; empty: it writes none.
        file: That file's name.
        listing: What the checkpoint's state says of all parts; empty: there are none.
    """

    main: dict[str, Tensor]
    part: dict[str, Tensor]
    file: str
    listing: dict[str, Any]

    def copied(self) -> Snapshot:
        """With memory of its own: training may go on while it is written."""
        main, part = ({k: t.detach().cpu().clone() for k, t in x.items()} for x in (self.main, self.part))
        return self._replace(main=main, part=part)


class Writer:
    """Names the parts of one process's checkpoints, in the order in which they are written."""

    def __init__(self, backend: ParallelBackend) -> None:
        self.backend = backend
        self.session = backend.broadcast(uuid.uuid4().hex[:8])
        self.number = 0

    def snapshot(self, tensors: Mapping[str, Pieces]) -> Snapshot:
        """Decides who writes what; every process calls it, with its own pieces of the same tensors."""
        self.number += 1
        rank, world = self.backend.rank, self.backend.world_size
        file = f"{self.session}-{self.number:06d}-{rank + 1}of{world}.safetensors"
        main: dict[str, Tensor] = {}
        part: dict[str, Tensor] = {}
        known: dict[str, Any] = {}
        written = written_here(tensors)
        for name, held in tensors.items():
            if name not in written:
                continue
            if rank == 0 and held.whole is not None:
                main[name] = held.whole
                continue
            for start, values in held.pieces:
                key = "@".join([name, *(str(a) for a in start)])
                part[key] = values
                known.setdefault(name, {"dtype": str(values.dtype)[6:], "shape": list(held.shape), "blocks": []})
                known[name]["blocks"].append([key, list(start), list(values.shape)])
        found = self.backend.gather_objects((file, known))
        return Snapshot(main, part, file, _index(found) if rank == 0 else {})


def _index(found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    files: list[str] = []
    tensors: dict[str, Any] = {}
    for file, known in found:
        if not known:
            continue
        files.append(file)
        for name, facts in known.items():
            blocks = [[len(files) - 1, *block] for block in facts["blocks"]]
            tensors.setdefault(name, {**facts, "blocks": []})["blocks"].extend(blocks)
    return {"files": files, "tensors": tensors} if files else {}


def write_part(folder: Path, snapshot: Snapshot) -> None:
    """Writes this process's blocks, if it has any.

    Raises:
        GemkitError: They cannot be written.
    """
    if snapshot.part:
        (folder / PARTS).mkdir(exist_ok=True)
        checkpoint.save(folder / PARTS / snapshot.file, snapshot.part, {})


def wait_for_parts(folder: Path, snapshot: Snapshot) -> None:
    """Waits until all processes have written theirs; for the first process.

    Raises:
        GemkitError: They have not in half an hour.
    """
    deadline = time.monotonic() + PATIENCE_S
    for name in snapshot.listing.get("files", ()):
        path = folder / PARTS / name
        while not path.exists():
            if time.monotonic() > deadline:
                raise GemkitError(
                    f"a part of the checkpoint is not there after {PATIENCE_S / 60:.0f} minutes: {name}",
                    where=str(path.parent),
                    fix="let runs=... be a folder that all processes share, or see that process's output",
                )
            time.sleep(LOOK_EVERY_S)


def remove_unused(folder: Path, snapshot: Snapshot) -> None:
    """Removes parts that no checkpoint names: of those that were replaced, and of processes that were killed."""
    if not (folder / PARTS).is_dir():
        return
    used = {name for path in folder.glob("*.safetensors") for name in _files(path)}
    session, number = snapshot.file.split("-")[:2]
    for path in (folder / PARTS).glob("*.safetensors"):
        own, counted = path.name.split("-")[:2]
        # What is numbered higher is being written for the next checkpoint.
        if path.name not in used and (own != session or counted <= number):
            path.unlink(missing_ok=True)


def _files(path: Path) -> list[str]:
    """The parts of a checkpoint; of one that cannot be read, none, so it cannot be gone back to anyway."""
    try:
        return list(checkpoint.summarise(path).state.get(PARTS, {}).get("files", ()))
    except GemkitError:
        return []
