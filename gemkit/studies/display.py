"""How far a study is: a few live lines in a terminal, a line for each run that ends elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gemkit.runs.progress import duration

TAIL_BYTES = 2000


class Display:
    """Counts the runs of a study as they start and end.

    Args:
        total: All runs; `done`: those that had finished before.
        jobs: Runs at once.
    """

    def __init__(self, total: int, done: int, jobs: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.total, self.done, self.num_failed, self.jobs = total, done, 0, jobs
        self._running: dict[Any, tuple[Path, float]] = {}
        self._durations_s: list[float] = []
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        self.say(f"{self.total} runs, {self.done} finished before, {min(self.jobs, self.left)} at a time")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()

    @property
    def left(self) -> int:
        """Runs that have neither finished nor failed."""
        return self.total - self.done - self.num_failed

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=self._live is None)

    def started(self, job: Any, output: Path) -> None:
        """A run starts, and prints into `output`."""
        self._running[job] = output, time.monotonic()

    def finished(self, job: Any, metrics: str) -> None:
        """A run has finished, here or elsewhere, with these metrics."""
        self.done += 1
        if job in self._running:
            self._durations_s.append(self._end(job))
            took = f"done in {duration(self._durations_s[-1])}"
        else:
            took = "done elsewhere"
        self.say(f"{self.count()} {job}: {took}, {metrics}{self._eta()}")

    def failed(self, job: Any, error: str) -> None:
        """A run has failed; `error` says why."""
        self.num_failed += 1
        self._end(job)
        self.say(f"{self.count()} {job}: failed{self._eta()}")
        self.say("\n".join(f"    {line}" for line in error.splitlines()))

    def stopped(self, job: Any) -> None:
        """A run has ended because the study is to stop."""
        self._end(job)
        self.say(f"{self.count()} {job}: stopped; it goes on from its last checkpoint")

    def count(self) -> str:
        """``[3/24]``: runs that have ended, of all."""
        return f"[{self.done + self.num_failed}/{self.total}]"

    def refresh(self) -> None:
        """Draws the live lines."""
        if self._live is None:
            return
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        lines = [f"{self.done} of {self.total} runs done{failed}, {len(self._running)} running{self._eta()}"]
        for job, (output, started_s) in self._running.items():
            lines.append(f"  {duration(time.monotonic() - started_s)}  {job}: {_last_line(output)}")
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def _end(self, job: Any) -> float:
        return time.monotonic() - self._running.pop(job)[1]

    def _eta(self) -> str:
        """``, 0:10:00 left``, from the mean time of the runs that have finished."""
        if not self._durations_s or not self.left:
            return ""
        mean_s = sum(self._durations_s) / len(self._durations_s)
        begun_s = sum(min(time.monotonic() - started_s, mean_s) for _, started_s in self._running.values())
        return f", {duration((self.left * mean_s - begun_s) / min(self.jobs, self.left))} left"


def _last_line(output: Path) -> str:
    """What a run printed last."""
    with output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "starting")
