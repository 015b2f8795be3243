"""Writing checkpoints, at once or while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from gemkit.interfaces import ParallelBackend
from gemkit.pieces import Pieces
from gemkit.runs.checkpoint import PARTS
from gemkit.runs.parts import Snapshot, Writer, remove_unused, wait_for_parts, write_part

Publish = Callable[[dict[str, Tensor], dict[str, Any]], None]
"""Writes the checkpoint's own file from its tensors and what its state says of parts."""


class Saver:
    """Writes one checkpoint after the other.

    Args:
        asynchronous: Copy what is to be written and go on; a thread writes it. An error comes up at the next call.

    Attributes:
        stall_s: Seconds that training has waited for checkpoints.
        saves: Checkpoints begun.
    """

    def __init__(self, backend: ParallelBackend, asynchronous: bool = False) -> None:
        self.rank, self.writer = backend.rank, Writer(backend)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self.pending: list[Future[None]] = []
        self.stall_s, self.saves = 0.0, 0

    def save(self, folder: Path, tensors: Mapping[str, Pieces], publish: Publish) -> None:
        """Writes what this process holds; the first one publishes the checkpoint when all have.

        Raises:
            GemkitError: It cannot be written, or the one before could not.
        """
        began = time.perf_counter()
        self.wait(but=1)  # best and last often come together
        snapshot = self.writer.snapshot(tensors)
        if self.thread is None:
            self._write(folder, snapshot, publish)
        else:
            self.pending.append(self.thread.submit(self._write, folder, snapshot.copied(), publish))
        self.stall_s += time.perf_counter() - began
        self.saves += 1

    def wait(self, but: int = 0) -> None:
        """Until everything is written, `but` the newest few.

        Raises:
            GemkitError: It cannot be.
        """
        while len(self.pending) > but:
            self.pending.pop(0).result()

    def _write(self, folder: Path, snapshot: Snapshot, publish: Publish) -> None:
        write_part(folder, snapshot)
        if self.rank == 0:
            wait_for_parts(folder, snapshot)
            publish(snapshot.main, {PARTS: snapshot.listing} if snapshot.listing else {})
            remove_unused(folder, snapshot)
