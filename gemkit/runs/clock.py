"""Time of training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds of training without the pauses, and examples a second between two rows of the history.

    Args:
        before_s, examples: What was trained before a resume.
    """

    def __init__(self, before_s: float, examples: int) -> None:
        self._started_s = time.perf_counter() - before_s
        self._lap_s, self._lap_examples = time.perf_counter(), examples

    def seconds(self) -> float:
        """Since the start, what was trained before a resume included."""
        return time.perf_counter() - self._started_s

    def lap(self, examples: int) -> float:
        """Examples a second since the last lap."""
        now_s = time.perf_counter()
        rate = (examples - self._lap_examples) / (now_s - self._lap_s)
        self._lap_s, self._lap_examples = now_s, examples
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        before_s, started_s = time.perf_counter(), self._started_s
        try:
            yield
        finally:
            pause_s = time.perf_counter() - before_s
            self._started_s, self._lap_s = started_s + pause_s, self._lap_s + pause_s
