"""The teacher logs of transfer.py's suites."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gemkit.registry import load_registry
from gemkit.runs.progress import Progress
from gemkit.transfer.codes import CodeSpace, Coding
from gemkit.transfer.log import TeacherLog
from gemkit.transfer.teach import Lesson, teach

WIDEST = "128x32"
"""Numbers of a code, and bits of each, from which the other widths are cut."""


def answer(teacher: Path, log: Path, window: tuple[int, int] | None) -> None:
    """Writes a log, whose name says how; of a window of days soft labels alone, else all that are newer, with codes."""
    kind = log.name.removeprefix("log").removeprefix("-")
    if kind == "biased":
        if not TeacherLog.is_there(log):
            answer(teacher, log.with_name("log"), window)
            biased(TeacherLog.open(log.with_name("log")), log)
        return
    if kind and kind not in ("user", WIDEST):
        width, bits = (int(number) for number in kind.split("x"))
        if not TeacherLog.is_there(log):
            answer(teacher, log.with_name(f"log-{WIDEST}"), window)
            narrower(TeacherLog.open(log.with_name(f"log-{WIDEST}")), log, width, bits)
        return
    lesson = Lesson(coding=Coding(32, 8, "example")) if window is None else Lesson(days=window)
    if kind == "user":
        lesson = Lesson(coding=Coding(32, 8, "user"))
    elif kind == WIDEST:
        width, bits = (int(number) for number in WIDEST.split("x"))
        lesson = Lesson(coding=Coding(width, bits, "example"))
    teach(teacher, log, lesson, load_registry(), Progress(quiet=True))


def narrower(log: TeacherLog, folder: Path, width: int, bits: int) -> None:
    """The log that `teach` would have written with fewer numbers of fewer bits: the first directions are the same."""
    assert log.space is not None
    old = log.space
    space = CodeSpace(old.mean, old.matrix[:, :width].copy(), old.shift[:width].copy(), bits, old.of)
    rows, snapshot = log.rows()
    fresh = TeacherLog.create(folder, log.tasks, log.data, log.origin, space)
    fresh.append(rows._replace(code=space.pack(old.unpack(rows.code)[:, :width])), "narrower", "", int(snapshot[0]))


def biased(log: TeacherLog, folder: Path, calibration: float = 1.3) -> None:
    """The same answers with every probability times `calibration`."""
    rows, snapshot = log.rows()
    p = (calibration / (1 + np.exp(-rows.logits.astype(np.float64)))).clip(1e-6, 1 - 1e-6)
    fresh = TeacherLog.create(folder, log.tasks, log.data, log.origin, log.space)
    fresh.append(rows._replace(logits=np.log(p / (1 - p)).astype(np.float32)), "biased", "", int(snapshot[0]))
