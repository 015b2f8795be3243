"""One broken rule of the dataset format, and the few lines that find the rows of a file that break it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gemkit.errors import GemkitError

SLICE = 1_000_000
"""Rows looked at together: what a check takes in memory does not grow with the file."""

SHOWN = 5
"""Rows that are named of those at fault."""

REBUILD = "delete the folder and build it again"


class Violation(NamedTuple):
    """What is wrong in one column of one file.

    Attributes:
        file: Relative to the dataset folder.
        rows: The first rows at fault; row 0 is the first. Empty if it is not about rows.
        num_rows: How many rows are at fault.
        column: None if it is not about one column.
        what: What is wrong, as a sentence.
        allowed: What would be right.
    """

    file: str
    rows: tuple[int, ...]
    num_rows: int
    column: str | None
    what: str
    allowed: str | None = None

    @property
    def place(self) -> str:
        """File, column and rows in words."""
        words = [self.file]
        if self.column is not None:
            words.append(f"column {self.column}")
        if self.num_rows:
            shown = ", ".join(map(str, self.rows)) + " ..." * (self.num_rows > len(self.rows))
            words.append(f"{self.num_rows:,} row{'s' * (self.num_rows > 1)}: {shown} (the first is 0)")
        return ", ".join(words)

    def error(self, folder: object) -> GemkitError:
        """As what stops the opening of the folder."""
        return GemkitError(self.what, where=f"{folder}/{self.place}", allowed=self.allowed, fix=REBUILD)


def about_file(file: str, what: str, allowed: str | None = None, column: str | None = None) -> Violation:
    """A violation that is not about rows."""
    return Violation(file, (), 0, column, what, allowed)


class Findings:
    """Collects the rows of one file that break rules, slice by slice: one violation for each rule and column."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[tuple[str | None, str], Violation] = {}

    def add(
        self,
        column: str | None,
        what: str,
        rows: np.ndarray,
        allowed: str | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        """Notes rows that break a rule; none is fine.

        Args:
            what: The rule. ``{value}`` in it stands for the first value at fault.
            rows: (n,) ascending.
            values: (n,) what stands there.
        """
        if not len(rows):
            return
        old = self._found.get((column, what))
        first: tuple[int, ...] = old.rows if old else ()
        count = old.num_rows if old else 0
        said = old.what if old else what if values is None else what.replace("{value}", str(values[0]))
        first = (*first, *rows[: SHOWN - len(first)].tolist())
        self._found[column, what] = Violation(self.file, first, count + len(rows), column, said, allowed)

    def say(self, column: str | None, what: str, allowed: str | None = None) -> None:
        """Notes what is not about rows."""
        self._found[column, what] = about_file(self.file, what, allowed, column)

    def __iter__(self) -> Iterator[Violation]:
        yield from self._found.values()

    def __bool__(self) -> bool:
        return bool(self._found)


def slices(num_rows: int) -> Iterator[tuple[int, int]]:
    """First and last row (excluded) of each slice of a file."""
    return ((start, min(start + SLICE, num_rows)) for start in range(0, num_rows, SLICE))
