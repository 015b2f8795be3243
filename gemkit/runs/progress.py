"""Progress of long work: bars in a terminal, now and then a line elsewhere, nothing when quiet.

with Progress() as progress:
    with progress.task("train", total=800_000) as bar:
        bar.advance(1024, loss=loss)
    with progress.callback() as report:
        recipe.fetch(folder, report)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

LINE_EVERY_S = 10.0


class Progress:
    """Hands out bars. One object per process: bars that run at the same time share the screen.

    Args:
        quiet: Print nothing (ranks other than the first, `--quiet`).
        console: Where to; standard output by default.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console()
        self.quiet = quiet
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.log: Callable[[str], None] | None = None
        """Gets every line of `print` too."""
        self._screen: RichProgress | None = None
        self._open: list[Bar] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for bar in list(self._open):
            bar.close(finished=kind is None)

    def task(self, name: str, total: int | None = None, unit: str = "examples", done: int = 0) -> Bar:
        """A bar, to be used in a `with` statement.

        Args:
            total: Units in all; None: unknown.
            unit: What is counted; "bytes" are shown as kB, MB, GB.
            done: Units that were done before, by the run that is resumed: they do not count for the rate.
        """
        return Bar(self, name, total, unit, done)

    def callback(self, unit: str = "bytes") -> Reporter:
        """A function of (name, done, total; 0 if unknown) that keeps a bar for each name."""
        return Reporter(self, unit)

    def print(self, text: str) -> None:
        """A line of text, above the bars if there are any."""
        if self.log is not None:
            self.log(text)
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=not self.live)

    def _attach(self, bar: Bar) -> RichProgress | None:
        self._open.append(bar)
        if self.live and self._screen is None:
            bar_width = min(28, max(8, self.console.width - 72))
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=bar_width), _Figures())
            self._screen = RichProgress(*columns, console=self.console, refresh_per_second=4)
            self._screen.start()
        return self._screen

    def _detach(self, bar: Bar) -> bool:
        """Whether other bars are still open."""
        self._open.remove(bar)
        return bool(self._open)

    def _stop_screen(self) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None


class Bar:
    """One piece of work under way."""

    def __init__(self, progress: Progress, name: str, total: int | None, unit: str, done: int) -> None:
        self._progress = progress
        self.name = name
        self.total = total
        self.unit = unit
        self.done = done
        self.values: dict[str, Any] = {}
        self._before = done
        self._started_s = self._line_s = time.monotonic()
        self._screen: RichProgress | None = None
        self._row: Any = None
        self._is_open = False

    def __enter__(self) -> Self:
        self._is_open = True
        self._started_s = self._line_s = time.monotonic()
        self._screen = self._progress._attach(self)
        if self._screen is not None:
            self._row = self._screen.add_task(self.name, total=self.total, bar=self)
        else:
            self._progress.print(f"{self.name}: {self.amount()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close(finished=kind is None)

    def advance(self, n: int, **values: Any) -> None:
        """Counts `n` more units.

        Args:
            values: Shown beside the bar, e.g. the loss. A 0-dim tensor is read only when something is drawn, so
                that no step waits for the device.
        """
        self.update(self.done + n, **values)

    def update(self, done: int, total: int | None = None, **values: Any) -> None:
        """Sets what is done, and the total if it is known only now."""
        self.done = done
        self.total = total if total is not None else self.total
        self.values.update(values)
        if self._screen is not None:
            self._screen.update(self._row, completed=done, total=self.total)
        elif (now := time.monotonic()) - self._line_s >= LINE_EVERY_S:
            self._line_s = now
            self._progress.print(f"{self.name}: {', '.join([self.amount(), *self.figures()])}")

    def close(self, finished: bool = True) -> None:
        """Ends the bar; the `with` statement calls it."""
        if not self._is_open:
            return
        self._is_open = False
        others = self._progress._detach(self)
        if self._screen is None:
            word = "done" if finished else "stopped"
            rate = self.rate()
            suffix = f", {self.rate_text(rate)}" if rate else ""
            self._progress.print(f"{self.name}: {word}, {self.amount()} in {duration(self.elapsed_s())}{suffix}")
        elif others:
            self._screen.remove_task(self._row)  # a validation inside training leaves no row behind
        else:
            self._screen.update(self._row, completed=self.done, total=self.total or self.done)
            self._progress._stop_screen()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def rate(self) -> float | None:
        """Units a second since the start; None while there is too little to tell."""
        elapsed_s = self.elapsed_s()
        return (self.done - self._before) / elapsed_s if self.done > self._before and elapsed_s >= 0.1 else None

    def amount(self) -> str:
        """How much is done: ``1,024 / 800,000 examples (0%)``."""
        percent = f" ({100 * self.done // self.total}%)" if self.total and self.unit != "bytes" else ""
        total = f" / {self._count(self.total)}" if self.total else ""
        unit = "" if self.unit == "bytes" else f" {self.unit}"
        return f"{self._count(self.done)}{total}{unit}{percent}"

    def figures(self) -> list[str]:
        """Rate, time left and values: ``24,300 examples/s``, ``0:00:28 left``, ``loss 0.5301``."""
        parts = []
        if rate := self.rate():
            parts.append(self.rate_text(rate))
            if self.total:
                parts.append(f"{duration(max(0, self.total - self.done) / rate)} left")
        return parts + [f"{name} {_short(value)}" for name, value in self.values.items() if value is not None]

    def compact(self) -> str:
        """Amount and figures in as few characters as will do, for a terminal of 80 columns."""
        total = f"/{self._count(self.total)}" if self.total else ""
        return "  ".join([self._count(self.done) + total, *self.figures()])

    def rate_text(self, rate: float) -> str:
        return f"{self._count(round(rate))}/s" if self.unit == "bytes" else f"{self._count(round(rate))} {self.unit}/s"

    def _count(self, value: int) -> str:
        return decimal(value) if self.unit == "bytes" else f"{value:,}"


class Reporter:
    """The data code's progress protocol: call it with (name, done, total); 0 is an unknown total.

    In a `with` statement, or when a name reaches its total, bars are ended.
    """

    def __init__(self, progress: Progress, unit: str) -> None:
        self._progress = progress
        self._unit = unit
        self._bars: dict[str, Bar] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        bar = self._bars.get(name)
        if bar is None:
            # What is there at the first call was there before: a download that goes on counts from it.
            bar = self._progress.task(name, total or None, self._unit, done=0 if done >= total > 0 else done)
            self._bars[name] = bar.__enter__()
        bar.update(done, total or None)
        if 0 < total <= done:
            bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close(finished=kind is None)


class _Figures(ProgressColumn):
    """The numbers to the right of a bar."""

    def render(self, task: Task) -> Text:
        bar: Bar = task.fields["bar"]
        if task.finished:
            return Text(f"{bar.amount()} in {duration(task.elapsed or 0)}", no_wrap=True, overflow="ellipsis")
        return Text(bar.compact(), no_wrap=True, overflow="ellipsis")


def duration(seconds: float) -> str:
    """Seconds as people read them: ``0:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"
