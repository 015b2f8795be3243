"""How long a run takes to its first step, and what share of its time trains."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gemkit

PARTS = ("import", "data", "build", "load", "compile", "step")


class StartClock:
    """Divides the time from the start of a run to the end of its first step into parts, without gaps.

    Args:
        started_s: When the run began, on the clock `now`; None: now.
        now: The clock, in seconds.
    """

    def __init__(self, started_s: float | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started_s = self._last_s = now() if started_s is None else started_s
        self._compiling_s = self._steps_s = 0.0
        self._first = True
        self.parts = dict.fromkeys(PARTS, 0.0)

    def ends(self, part: str) -> None:
        """The time since the last call belongs to this part."""
        now_s = self._now()
        self.parts[part] += now_s - self._last_s
        self._last_s = now_s

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A training step happens inside. The wait for the first batch is `data`."""
        if self._first:
            self.ends("data")
        before_s, compiling_s = self._now(), self._compiling_s
        yield
        compiled_s = self._compiling_s - compiling_s
        self._steps_s += self._now() - before_s - compiled_s
        if self._first:
            self._first = False
            self.ends("step")
            self.parts["compile"] = compiled_s
            self.parts["step"] -= compiled_s

    @contextlib.contextmanager
    def counting_compilation(self) -> Iterator[None]:
        """Inside, time in which PyTorch compiles counts as such: tracing, its caches, code generation, the compiler."""
        from torch._dynamo.callback import CallbackArgs, callback_handler

        began_s = 0.0

        def start(_: CallbackArgs) -> None:
            nonlocal began_s
            began_s = self._now()

        def end(_: CallbackArgs) -> None:
            self._compiling_s += self._now() - began_s

        callback_handler.register_start_callback(start)
        callback_handler.register_end_callback(end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(start)
            callback_handler.remove_end_callback(end)

    def report(self) -> dict[str, Any]:
        """What metrics.json holds; `start_s` is None if there was no step."""
        wall_s = self._now() - self._started_s
        start_s = None if self._first else {"total": sum(self.parts.values()), **self.parts}
        return {"start_s": start_s, "effective_time": self._steps_s / wall_s}


def process_started_s() -> float:
    """When this process began, on the clock of `time.perf_counter`; if the system does not tell, when gemkit came."""
    try:
        facts = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        # The second field, the program's name in brackets, may hold anything; the 22nd is the start.
        ticks = int(facts.rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return gemkit.IMPORTED_S
    return time.perf_counter() - age_s
