"""What a teacher log says about a batch, looked up where the batch is."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import Answers
from gemkit.transfer.log import NO_SNAPSHOT, Rows, TeacherLog


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Config):
    """What every strategy that reads a teacher log is told."""

    name: str = ""
    log: str = option("", "Folder of the teacher log, which `gemkit teach` writes.")

    def check(self) -> None:
        if not self.log:
            raise GemkitError(
                f"transfer={self.name} needs a teacher log",
                where="log",
                fix="gemkit teach runs/<teacher> --log teachers/<name>, then transfer.log=teachers/<name>",
            )


@functools.lru_cache(maxsize=4)
def _read(folder: str, changed_ns: int) -> tuple[TeacherLog, Rows, np.ndarray]:
    """A log with its rows: the strategies of a run share it."""
    log = TeacherLog.open(Path(folder))
    return (log, *log.rows())


def read_log(folder: str) -> tuple[TeacherLog, Rows, np.ndarray]:
    """A log, its rows by ascending id, and the snapshot of each.

    Raises:
        GemkitError: There is none, or it is damaged.
    """
    index = Path(folder) / "log.json"
    return _read(folder, index.stat().st_mtime_ns if index.is_file() else 0)


def without_codes() -> GemkitError:
    """The error for a log that has no codes where they are wanted."""
    return GemkitError(
        "the teacher log has no codes", where="transfer.log", fix="gemkit teach RUN --log LOG --codes 32"
    )


class LoggedAnswers(nn.Module):
    """The rows of a log on the device of the batches, found by example id.

    Nothing is read before the first batch asks, so that a student is served without its teacher's log.

    Args:
        log: The folder.
        schema: The student's; its tasks are looked for by name.
        with_codes: Answers hold the codes too.
    """

    def __init__(self, log: str, schema: Schema, with_codes: bool = False) -> None:
        super().__init__()
        self.log, self.schema, self.with_codes = log, schema, with_codes
        self._held: dict[torch.device, tuple[Tensor, ...]] = {}

    def forward(self, batch: Batch) -> Answers:
        """Shape: logits, known (B, P), ages (B,), codes (B, K).

        Raises:
            GemkitError: The log lacks a task of the student or codes that are wanted, or is of other examples.
        """
        ids, logits, snapshots, codes = self._tensors(batch)
        if not len(ids):
            zeros = torch.zeros_like(batch.labels)
            return Answers(
                zeros, zeros, batch.weights.new_zeros(batch.size), codes.new_zeros(batch.size, codes.shape[1])
            )
        place = torch.searchsorted(ids, batch.example_id).clamp(max=len(ids) - 1)
        mask = (ids[place] == batch.example_id).float()
        snapshot = snapshots[place]
        ages = torch.where(snapshot == NO_SNAPSHOT, -1, batch.timestamp - snapshot).float() * mask
        known = mask.unsqueeze(1).expand_as(batch.labels)
        return Answers(logits[place] * known, known, ages, codes[place] * mask.unsqueeze(1))

    def _tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        device = batch.example_id.device
        if device not in self._held:
            log, rows, snapshot = read_log(self.log)
            missing = [t for t in self.schema.task_names if t not in log.tasks]
            if missing:
                raise GemkitError(
                    f"the teacher log says nothing about {', '.join(missing)}",
                    where="transfer.log",
                    allowed=f"tasks {', '.join(log.tasks)}",
                    fix="data.only_tasks=[...] leaves a task out, or teach with a run that has it",
                )
            self._check_same_data(rows, batch)
            columns = [log.tasks.index(t) for t in self.schema.task_names]
            codes = np.zeros((log.num_rows, 0), np.float32)
            if self.with_codes:
                if log.space is None:
                    raise without_codes()
                codes = log.space.unpack(rows.code)
            held = (rows.example_id, rows.logits[:, columns], snapshot, codes)
            self._held[device] = tuple(torch.from_numpy(array).to(device) for array in held)
        return self._held[device]

    def _check_same_data(self, rows: Rows, batch: Batch) -> None:
        """Once: an id that names another moment or another user is an id of another data set."""
        ids, times, groups = (t.cpu().numpy() for t in (batch.example_id, batch.timestamp, batch.group))
        place = np.searchsorted(rows.example_id, ids).clip(max=max(len(rows.example_id) - 1, 0))
        both = rows.example_id[place] == ids if len(rows.example_id) else np.zeros(len(ids), bool)
        same = (rows.timestamp[place[both]] == times[both]) & (rows.group[place[both]] == groups[both])
        if not same.all():
            raise GemkitError(
                f"the teacher log was written for other examples: {(~same).sum()} of {both.sum()} ids of a batch name "
                "another time or user there",
                where="transfer.log",
                allowed="a log of the very data set that the student reads",
                fix="gemkit teach again, with a teacher that reads this data set",
            )
