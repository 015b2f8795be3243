"""A teacher answers examples: `gemkit teach`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gemkit.data import storage
from gemkit.data.batch import Batch
from gemkit.data.collate import collate
from gemkit.data.dataset import Dataset
from gemkit.data.fetch import sha256_of
from gemkit.data.selection import DAY_S, Selection
from gemkit.data.workers import in_threads
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.folder import RunFolder
from gemkit.runs.keeping import BEST
from gemkit.runs.lock import locked
from gemkit.runs.progress import Progress
from gemkit.session import LoadedRun, load_run, reading_of, to_device
from gemkit.transfer import codes
from gemkit.transfer.codes import CodeSpace, Coding
from gemkit.transfer.log import Part, Rows, TeacherLog

PART_ROWS = 65_536
"""Answers in a part of the log: what is lost at most when a process is killed."""

FIT_ROWS = 32_768
"""Examples to which a code space is fitted: the newest that the teacher was trained on, or that the anchor knows."""

FIT_NUMBERS = 50_000_000
"""Numbers of all their readouts together."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a teacher is asked.

    Attributes:
        days: First and last day (excluded) of the examples; None: all that are newer than the teacher.
        surfaces: Only examples on these; empty: on those that the teacher was trained on.
        seen: Answer examples too that the teacher may have been trained on.
        coding: Codes that are wanted; None: none, or those that the log has.
        anchor: A log whose code space is kept, by a teacher that was refreshed. (In a log that others have begun it is
            kept in any case.)
    """

    days: tuple[float, float] | None = None
    surfaces: tuple[str, ...] = ()
    seen: bool = False
    coding: Coding | None = None
    anchor: Path | None = None


class Taught(NamedTuple):
    """What `teach` did.

    Attributes:
        asked: Examples that the lesson has.
        answered: Those of them that the log did not have before.
    """

    asked: int
    answered: int


def teach(
    run_folder: Path, log_folder: Path, lesson: Lesson, registry: Registry, progress: Progress | None = None
) -> Taught:
    """Writes what a run's best model says about examples into a log, those left out that the log has already.

    It can be stopped at any time; the same call goes on. An example is known by its id in the run's data set.

    Raises:
        GemkitError: The teacher may have been trained on some of the examples, and that was not asked for; the log is
            of another data set or other tasks; a file cannot be written.
    """
    progress = progress or Progress()
    loaded = load_run(run_folder, registry)
    data = loaded.open_dataset(registry, progress)
    snapshot = loaded.snapshot_s
    rows = _asked(data, lesson, snapshot)
    log_folder.mkdir(parents=True, exist_ok=True)
    with locked(log_folder), progress:
        checkpoint = sha256_of(RunFolder.open(run_folder).checkpoints / BEST)
        log = _open_log(log_folder, lesson, loaded, data, progress)
        answered = log.rows()[0].example_id
        left = rows[~np.isin(data.columns[storage.EXAMPLE_ID][rows], answered)]
        space = log.space
        others = [part for part in log.parts if part.checkpoint != checkpoint]
        if space is not None and others and len(left):
            space = _anchored(loaded, data, log, others, progress)
        with progress.task("teach", total=len(rows), done=len(rows) - len(left)) as bar:
            for start in range(0, len(left), PART_ROWS):
                part = left[start : start + PART_ROWS]
                # By the part, so that no row claims that its teacher was younger than it is.
                old = snapshot if (data.columns[storage.TIMESTAMP][part] > snapshot).all() else None
                log.append(_answers(loaded, data, part, space), run_folder.resolve().name, checkpoint, old)
                bar.advance(len(part))
    return Taught(len(rows), len(left))


def _asked(data: Dataset, lesson: Lesson, snapshot: int) -> np.ndarray:
    """The rows that the lesson has, ascending.

    Raises:
        GemkitError: There are none, or the teacher may have been trained on some.
    """
    data.selected(Selection(surfaces=lesson.surfaces))  # which knows the names
    asked = data.pick(np.arange(data.num_examples), lesson.days, lesson.surfaces or data.selection.surfaces)
    new = data.columns[storage.TIMESTAMP][asked] > snapshot
    if lesson.days is None and not lesson.seen:
        asked, new = asked[new], new[new]
    day = float((snapshot - data.first_s // DAY_S * DAY_S) / DAY_S)
    if not len(asked):
        raise GemkitError(
            "there is no such example" if lesson.days else "no example is newer than the teacher",
            where="--days" if lesson.days else "data.train_days",
            fix=f"the teacher has seen day {day:.2f}: train it on earlier days, or --seen",
        )
    if not lesson.seen and not new.all():
        raise GemkitError(
            f"{(~new).sum():,} of {len(asked):,} examples are not newer than the teacher, which may know their labels",
            where="--days",
            allowed=f"days after {day:.2f}",
            fix="--seen, if that is wanted",
        )
    return asked


def _open_log(folder: Path, lesson: Lesson, loaded: LoadedRun, data: Dataset, progress: Progress) -> TeacherLog:
    tasks = data.schema.task_names
    if not TeacherLog.is_there(folder):
        space = None
        if lesson.coding is not None or lesson.anchor is not None:
            space = _code_space(lesson, loaded, data, progress)
        return TeacherLog.create(folder, tasks, data.schema.name, data.origin, space)
    log = TeacherLog.open(folder)
    for what, here, there in (
        ("data set", data.schema.name, log.data),
        ("tasks", ", ".join(tasks), ", ".join(log.tasks)),
        ("build of the data set", data.origin[:12], log.origin[:12]),
    ):
        if here != there:
            raise GemkitError(f"the log is of another {what}", where=str(folder), allowed=there, fix="name a new log")
    if lesson.anchor is not None and log.space is None:
        raise GemkitError("the log has no codes", where="--anchor", allowed="no codes", fix="name a new log")
    there_is = log.space.coding if log.space else None
    if lesson.coding not in (None, there_is):
        found = "{} numbers of {} bits, of the {}".format(*there_is) if there_is else "no codes"
        raise GemkitError("the log has other codes", where="--codes", allowed=found, fix="name a new log")
    return log


def _code_space(lesson: Lesson, loaded: LoadedRun, data: Dataset, progress: Progress) -> CodeSpace:
    """
    Raises:
        GemkitError: The anchor has no codes, or no example of this data set; or users have no names.
    """
    if lesson.anchor is None:
        assert lesson.coding is not None
        width, bits, of = lesson.coding
        if of == "user" and data.schema.group is None:
            raise GemkitError(
                f"codes of users, and the data set '{data.schema.name}' does not say whose an example is",
                where="--codes-of",
                fix="--codes-of example",
            )
        rows = data.split("train")
        count = min(FIT_ROWS, FIT_NUMBERS // loaded.model.dense.readout.width)
        newest = np.sort(rows[np.argsort(data.columns[storage.TIMESTAMP][rows], kind="stable")[-count:]])
        readouts = _readouts(loaded, data, newest, progress)
        if of == "example":
            return codes.fit(readouts, width, bits)
        return codes.fit_users(readouts, data.columns[storage.GROUP][newest], width, bits)
    anchor = TeacherLog.open(lesson.anchor)
    if anchor.space is None or anchor.origin != data.origin:
        problem = "has no codes" if anchor.space is None else "is of another build of the data set"
        raise GemkitError(f"the anchor {problem}", where="--anchor", allowed="a log with --codes of the same data set")
    return _anchored(loaded, data, anchor, anchor.parts, progress)


def _anchored(
    loaded: LoadedRun, data: Dataset, log: TeacherLog, parts: Sequence[Part], progress: Progress
) -> CodeSpace:
    """The space in which this teacher goes on with the codes of others, fitted to the newest of them."""
    assert log.space is not None
    known = log.as_asked(parts)
    count = min(FIT_ROWS, FIT_NUMBERS // loaded.model.dense.readout.width)
    newest = slice(max(len(known.example_id) - count, 0), None)
    ids = np.asarray(data.columns[storage.EXAMPLE_ID])
    order = np.argsort(ids, kind="stable")
    rows = order[np.searchsorted(ids[order], known.example_id[newest])]
    readouts, known_codes = _readouts(loaded, data, rows, progress), log.space.unpack(known.code[newest])
    return codes.anchored(readouts, known_codes, log.space.bits, log.space.of)


def _readouts(loaded: LoadedRun, data: Dataset, rows: np.ndarray, progress: Progress) -> np.ndarray:
    found = []
    with torch.no_grad(), progress.task("codes", total=len(rows)) as bar:
        for batch in _batches(loaded, data, rows):
            found.append(loaded.model(batch).readout.float().cpu().numpy())
            bar.advance(batch.size)
    return np.concatenate(found)


@torch.no_grad()
def _answers(loaded: LoadedRun, data: Dataset, rows: np.ndarray, space: CodeSpace | None) -> Rows:
    parts = []
    for batch in _batches(loaded, data, rows):
        outputs = loaded.model(batch)
        code = np.zeros((batch.size, 0), np.uint8)
        if space is not None:
            code = space.pack(space.encode(outputs.readout.float().cpu().numpy()))
        ids, times, groups = (t.cpu().numpy() for t in (batch.example_id, batch.timestamp, batch.group))
        parts.append(Rows(ids, times, groups, outputs.logits.float().cpu().numpy(), code))
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _batches(loaded: LoadedRun, data: Dataset, rows: np.ndarray) -> Iterator[Batch]:
    model, size = loaded.model, loaded.model.run.train.eval_batch_size
    reading = reading_of(model.run, model.dense)

    def make(number: int) -> Batch:
        return collate(data, rows[number * size : (number + 1) * size], reading)

    return to_device(in_threads(make, range(-(-len(rows) // size)), 1, 2), loaded.backend)
