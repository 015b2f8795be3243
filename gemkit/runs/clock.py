"""Time of training, and how much of it is spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Seconds of training without the pauses, and examples a second between two rows of the history.

    Args:
        before_s, examples, wait_s: What was trained, and waited, before a resume.

    Attributes:
        wait_s: Seconds in which training had no batch.
    """

    def __init__(self, before_s: float, examples: int, wait_s: float = 0.0) -> None:
        self._started_s = time.perf_counter() - before_s
        self._lap_s, self._lap_examples = time.perf_counter(), examples
        self.wait_s = self._lap_wait_s = wait_s

    def seconds(self) -> float:
        """Since the start, what was trained before a resume included."""
        return time.perf_counter() - self._started_s

    def lap(self, examples: int) -> dict[str, float]:
        """Examples a second, and the share of the time spent waiting, since the last lap."""
        now_s = time.perf_counter()
        lap_s = now_s - self._lap_s
        row = {"examples_per_s": (examples - self._lap_examples) / lap_s}
        row["data_wait"] = (self.wait_s - self._lap_wait_s) / lap_s
        self._lap_s, self._lap_examples, self._lap_wait_s = now_s, examples, self.wait_s
        return row

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes batches on, and counts the time that each takes to come."""
        while True:
            asked_s = time.perf_counter()
            batch = next(batches, None)
            self.wait_s += time.perf_counter() - asked_s
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        before_s, started_s = time.perf_counter(), self._started_s
        try:
            yield
        finally:
            pause_s = time.perf_counter() - before_s
            self._started_s, self._lap_s = started_s + pause_s, self._lap_s + pause_s
