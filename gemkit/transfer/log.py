"""The teacher log: what teachers said about examples, once for each example, for any number of students.

    LOG/
        log.json             tasks, data set, and for each part its hash, its teacher and how old that was
        code.safetensors     the space of the codes, if there are any
        parts/000000.arrow   example id, time, user, one logit for each task, code; in the order of asking

A part is written whole or not at all, and counts once log.json names it. Rows are never changed: a teacher that was
refreshed adds parts, and an example keeps its first answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.fetch import sha256_of
from gemkit.errors import GemkitError, did_you_mean
from gemkit.runs.files import replacing, write_text
from gemkit.transfer.codes import BITS, KEEPS, CodeSpace

INDEX, CODE, PARTS = "log.json", "code.safetensors", "parts"
FORMAT, VERSION = "gemkit-teacher-log", 2
LOGIT, CODE_COLUMN = "_logit_", "_code"
NO_SNAPSHOT = 2**62
"""Snapshot of a teacher that may have been trained on what it answers."""


class Rows(NamedTuple):
    """Answers about N examples.

    Attributes:
        example_id, timestamp, group: (N,) int64, as a batch has them.
        logits: (N, P) float32.
        code: (N, bytes) uint8, as the code space packs it; no columns without codes.
    """

    example_id: np.ndarray
    timestamp: np.ndarray
    group: np.ndarray
    logits: np.ndarray
    code: np.ndarray


class Part(NamedTuple):
    """What log.json says of a part.

    Attributes:
        teacher: Name of the run folder.
        checkpoint: sha256 of the teacher's weights file.
        snapshot_s: Time of the newest example that the teacher was trained on, seconds since 1970; None: unknown, or
            some of the examples were.
    """

    file: str
    rows: int
    sha256: str
    teacher: str
    checkpoint: str
    snapshot_s: int | None


class TeacherLog:
    """A log folder, opened. `TeacherLog.open` reads an existing one, `TeacherLog.create` begins one.

    Attributes:
        tasks: Names of the P tasks.
        data: Name of the data set.
        origin: Which build of it: `Dataset.origin`.
    """

    def __init__(
        self, folder: Path, tasks: Sequence[str], data: str, origin: str, space: CodeSpace | None, parts: Sequence[Part]
    ) -> None:
        self.folder, self.tasks, self.data, self.origin = folder, tuple(tasks), data, origin
        self.space, self.parts = space, list(parts)

    @classmethod
    def create(
        cls, folder: Path, tasks: Sequence[str], data: str, origin: str, space: CodeSpace | None = None
    ) -> TeacherLog:
        """An empty log in a new folder.

        Raises:
            GemkitError: The folder holds something else, or cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
            raise GemkitError(f"{folder} exists and is no teacher log", where="--log", fix="name another folder")
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        if space is not None:
            space.save(folder / CODE)
        log = cls(folder, tasks, data, origin, space, ())
        log._write_index()
        return log

    @classmethod
    def is_there(cls, folder: Path) -> bool:
        """Whether a folder holds a log."""
        return (folder / INDEX).is_file()

    @classmethod
    def open(cls, folder: Path) -> TeacherLog:
        """An existing log. Rows are read by `rows`.

        Raises:
            GemkitError: There is none, or log.json does not say what it should.
        """
        try:
            index = storage.read_json(folder / INDEX)
        except OSError:
            names = [p.parent.name for p in folder.parent.glob(f"*/{INDEX}")] if folder.parent.is_dir() else []
            raise GemkitError(
                f"{folder} holds no teacher log",
                where=str(folder),
                allowed="a folder that `gemkit teach` made",
                fix=did_you_mean(folder.name, names) or f"gemkit teach RUN --log {folder}",
            ) from None
        except ValueError as error:
            raise _damaged(folder, str(error)) from error
        try:
            if index["format"] != FORMAT or index["version"] != VERSION:
                raise ValueError(f"it has format {index['format']!r}, version {index['version']!r}")
            tasks = [str(t) for t in index["tasks"]]
            parts = [Part(*(part[name] for name in Part._fields)) for part in index["parts"]]
            for part in parts:
                if not re.fullmatch(rf"{PARTS}/[0-9]{{6}}\.arrow", part.file):
                    raise ValueError(f"a part is called {part.file!r}")
                if not isinstance(part.rows, int) or not isinstance(part.snapshot_s, int | None):
                    raise ValueError(f"{part.file}: rows and snapshot are no numbers")
            space, code = None, index["code"]
            if code is not None:
                if code["bits"] not in BITS or code["of"] not in KEEPS or not isinstance(code["width"], int):
                    raise ValueError(f"codes are {code}")
                space = CodeSpace.load(folder / CODE, code["width"], code["bits"], code["of"])
            return cls(folder, tasks, str(index["data"]), str(index["origin"]), space, parts)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, f"{type(error).__name__} {error}") from error

    @property
    def num_rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def num_code_bytes(self) -> int:
        """Of one stored code; 0 without codes."""
        return self.space.num_bytes if self.space else 0

    def append(self, rows: Rows, teacher: str, checkpoint: str, snapshot_s: int | None) -> None:
        """Adds a part; it counts when this returns.

        Raises:
            GemkitError: It cannot be written.
        """
        file = f"{PARTS}/{len(self.parts):06d}.arrow"
        columns: dict[str, Any] = {
            storage.EXAMPLE_ID: rows.example_id,
            storage.TIMESTAMP: rows.timestamp,
            storage.GROUP: rows.group,
            **{LOGIT + task: np.ascontiguousarray(rows.logits[:, i]) for i, task in enumerate(self.tasks)},
            **({CODE_COLUMN: rows.code} if self.space else {}),
        }
        with replacing(self.folder / file) as temporary:
            storage.write_table(storage.table_of(columns), temporary)
        digest = sha256_of(self.folder / file)
        self.parts.append(Part(file, len(rows.example_id), digest, teacher, checkpoint, snapshot_s))
        self._write_index()

    def as_asked(self, parts: Sequence[Part]) -> Rows:
        """The answers of some parts, in the order in which they were asked for.

        Raises:
            GemkitError: A part is missing, has changed, or holds something else.
        """
        found = [self._part(part) for part in parts]
        empty = Rows(*(np.zeros(0, np.int64),) * 3, np.zeros((0, len(self.tasks)), np.float32), self._no_codes(0))
        return Rows(*(np.concatenate(columns) for columns in zip(empty, *found, strict=True)))

    def rows(self) -> tuple[Rows, np.ndarray]:
        """All answers in ascending order of example id, and the snapshot of each. Shape: (N,) int64.

        Raises:
            GemkitError: As `as_asked`, or an example is answered twice.
        """
        joined = self.as_asked(self.parts)
        snapshots = [NO_SNAPSHOT if p.snapshot_s is None else p.snapshot_s for p in self.parts]
        snapshot = np.repeat(np.array(snapshots, np.int64), [p.rows for p in self.parts])
        order = np.argsort(joined.example_id, kind="stable")
        ids = joined.example_id[order]
        if (ids[1:] == ids[:-1]).any():
            raise _damaged(self.folder, "an example is answered twice")
        return Rows(*(column[order] for column in joined)), snapshot[order]

    def _part(self, part: Part) -> Rows:
        path = self.folder / part.file
        if not path.is_file():
            raise _damaged(self.folder, f"{part.file} is missing")
        if sha256_of(path) != part.sha256:
            raise _damaged(self.folder, f"{part.file} has changed since it was written")
        table = storage.open_table(path)
        try:
            logits = [np.asarray(table.column(LOGIT + task), np.float32) for task in self.tasks]
            ids, times, groups = (
                np.asarray(table.column(name), np.int64)
                for name in (storage.EXAMPLE_ID, storage.TIMESTAMP, storage.GROUP)
            )
            code = self._no_codes(len(ids))
            if self.space:
                code = storage.one_piece(table.column(CODE_COLUMN)).values.to_numpy().reshape(len(ids), -1)
            if code.shape != (len(ids), self.num_code_bytes) or code.dtype != np.uint8 or len(ids) != part.rows:
                raise ValueError("its rows are not as log.json says")
            numbers = [*logits, self.space.unpack(code)] if self.space else logits
            if not all(np.isfinite(values).all() for values in numbers):
                raise ValueError("a number is not finite")
        except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
            raise _damaged(self.folder, f"{part.file}: {error}") from error
        return Rows(ids, times, groups, np.stack(logits, axis=1), code)

    def _no_codes(self, rows: int) -> np.ndarray:
        return np.zeros((rows, self.num_code_bytes), np.uint8)

    def _write_index(self) -> None:
        index = {
            **{"format": FORMAT, "version": VERSION, "tasks": self.tasks, "data": self.data, "origin": self.origin},
            "code": self.space.coding._asdict() if self.space else None,
            "parts": [part._asdict() for part in self.parts],
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=1) + "\n")


def _damaged(folder: Path, why: str) -> GemkitError:
    return GemkitError(
        f"the teacher log cannot be read: {why}", where=str(folder), fix="remove the folder, and teach again"
    )
