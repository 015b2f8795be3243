"""How evenly the work lies on the processes of a run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

from gemkit.data.batch import Batch
from gemkit.interfaces import ParallelBackend

STRAGGLER = 1.25
"""A process that computes this many times as long as the median one is named."""


class LoadBalance:
    """Counts what each process reads and computes between two rows of the history.

    `busy_s` is the processor time of a process's own threads, which does not count what it waits for others.

    Attributes:
        busy_s: That of all processes together, a step, since the run was started.
    """

    def __init__(self, backend: ParallelBackend) -> None:
        self.backend = backend
        self._named: set[int] = set()
        self._busy_s, self._counted = 0.0, 0
        self._start()

    def _start(self) -> None:
        self._examples = self._events = self._steps = 0
        self._began = time.process_time()

    @property
    def busy_s(self) -> float | None:
        return self._busy_s / self._counted if self._counted else None

    def count(self, batches: list[Batch]) -> None:
        """Adds the micro-batches of one step."""
        self._steps += 1
        for batch in batches:
            self._examples += batch.size
            self._events += 0 if batch.history is None else len(batch.history.ages)

    def lap(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Numbers of every process since the last lap, in order of rank, for the first one; starts anew.

        Keys: `rank_events` and `rank_busy_s`, a number a step; `balance`, the mean of the busy times over the longest.
        """
        steps = max(self._steps, 1)
        own = (self._events / steps, (time.process_time() - self._began) / steps, platform.node())
        found = self.backend.gather_objects(own)
        busy = [row[1] for row in found]
        self._busy_s, self._counted = self._busy_s + sum(busy) * steps, self._counted + steps
        self._start()
        if len(found) < 2:
            return {}
        median = sorted(busy)[(len(busy) - 1) // 2]
        for rank, seconds in enumerate(busy):
            if seconds > STRAGGLER * median and rank not in self._named:
                self._named.add(rank)
                say(
                    f"note: process {rank} on {found[rank][2]} computes {seconds / median:.1f} times as long as the "
                    f"median one ({found[rank][0]:,.0f} events a step; see rank_events and rank_busy_s)"
                )
        return {
            "rank_events": [round(row[0], 1) for row in found],
            "rank_busy_s": busy,
            "balance": sum(busy) / len(busy) / max(busy),
        }
