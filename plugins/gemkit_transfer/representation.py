"""Representations: the student reads the newest code that a teacher left about the user."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.arrays import offsets_of
from gemkit.data.batch import Batch
from gemkit.data.schema import Schema, VectorFeature
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, TransferStrategy
from gemkit.transfer.answers import LogConfig, read_log, without_codes
from gemkit.transfer.log import TeacherLog

FEATURE = "teacher_code"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentationConfig(LogConfig):
    """Options of the representation."""

    name: str = "representation"
    of: str = option(
        "mean",
        "Which codes of the user an example reads: the newest that is older than the example, or the mean of all that "
        "are.",
        choices=("newest", "mean"),
    )
    min_age_s: int = option(
        0, "Codes younger than this are not there yet: seconds that it takes to make and publish them.", ge=0
    )


@component("transfer", RepresentationConfig)
class Representation(TransferStrategy):
    """A feature of the student, without gradient: what the teacher's head read at the user's earlier examples.

    The log has codes of readouts keyed by (user, time). An example reads those of its user that are older than itself,
    so a code never contains the example. A user without one gets zeros, and a number beside the code says so. Serving
    needs the codes and no teacher.

    Paper: LoopFM (arXiv 2605.29280): codes exclude the current example, and a teacher that is refreshed breaks its
        readers unless the code space is anchored (`gemkit teach --anchor`).
    Differs: codes come from a linear autoencoder (`gemkit.transfer.codes`). The schema's group is taken for the user.
    """

    reads_codes = True

    def __init__(self, config: RepresentationConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self._held: dict[torch.device, AsOf] = {}

    def extra_features(self, schema: Schema) -> Schema:
        """Adds a content vector of the user.

        Raises:
            GemkitError: The log has no codes, or the schema has no group or a feature of that name.
        """
        space = TeacherLog.open(Path(self.config.log)).space
        if space is None:
            raise without_codes()
        if schema.group is None:
            raise GemkitError(
                f"data set '{schema.name}' names no group, so codes have no user to belong to",
                where="transfer",
                fix="transfer=auxiliary_head needs none",
            )
        if FEATURE in [f.name for f in schema.features]:
            raise GemkitError(f"data set '{schema.name}' has a feature {FEATURE} already", where="transfer")
        feature = VectorFeature(name=FEATURE, role="user", width=space.width + 1)
        return dataclasses.replace(schema, vectors=(*schema.vectors, feature))

    @torch.no_grad()
    def with_features(self, batch: Batch) -> Batch:
        """Shape: vectors["teacher_code"] (B, K + 1), the last number 1 where there is a code."""
        device = batch.timestamp.device
        if device not in self._held:
            self._held[device] = AsOf.of(self.config.log, self.config.of == "mean").to(device)
        code = self._held[device](batch.group, batch.timestamp - self.config.min_age_s)
        return batch._replace(vectors={**batch.vectors, FEATURE: code})


class AsOf:
    """Codes by user and time, looked up as of a moment.

    Args:
        users: (G,) int64, ascending.
        starts: (G+1,) int64, where each user's rows begin.
        times: (N,) int64, ascending within a user.
        codes: (N+1, K+1) float32: what is known after each row; a row of zeros at the end stands for nothing.
    """

    def __init__(self, users: Tensor, starts: Tensor, times: Tensor, codes: Tensor) -> None:
        self.users, self.starts, self.times, self.codes = users, starts, times, codes
        # User and time in one ascending number: rank of the user, then the time since the first row.
        self.first = times.min() if len(times) else torch.zeros((), dtype=torch.int64, device=times.device)
        self.span = (times.max() - self.first + 2) if len(times) else torch.ones_like(self.first)
        owner = torch.repeat_interleave(torch.arange(len(users), device=times.device), starts.diff())
        self.keys = owner * self.span + (times - self.first)

    @classmethod
    def of(cls, log: str, mean: bool) -> AsOf:
        """From a teacher log.

        Raises:
            GemkitError: It is not there, damaged, or has no codes.
        """
        opened, rows, _ = read_log(log)
        if opened.space is None:
            raise without_codes()
        order = np.lexsort((rows.example_id, rows.timestamp, rows.group))
        groups, times = rows.group[order], rows.timestamp[order]
        codes = opened.space.unpack(rows.code[order])
        users, sizes = np.unique(groups, return_counts=True)
        starts = offsets_of(sizes)
        if mean and len(codes):
            codes = _running_mean(codes, starts)
        whole = np.concatenate([codes, np.zeros((1, opened.space.width), np.float32)])
        known = np.ones((len(whole), 1), np.float32)
        known[-1] = 0
        tensors = (users, starts, times, np.concatenate([whole, known], axis=1))
        return cls(*(torch.from_numpy(np.ascontiguousarray(t)) for t in tensors))

    def to(self, device: torch.device) -> AsOf:
        """The same on a device."""
        return AsOf(*(t.to(device) for t in (self.users, self.starts, self.times, self.codes)))

    def __call__(self, user: Tensor, time: Tensor) -> Tensor:
        """What is known of users strictly before a time. Shape: (B,), (B,) -> (B, K+1)."""
        if not len(self.users):
            return self.codes[-1].expand(len(user), -1)
        rank = torch.searchsorted(self.users, user).clamp(max=len(self.users) - 1)
        wanted = rank * self.span + (time - self.first).clamp(min=0).minimum(self.span - 1)
        row = torch.searchsorted(self.keys, wanted) - 1  # the last that is strictly older
        found = (self.users[rank] == user) & (row >= self.starts[rank])
        return self.codes[torch.where(found, row, len(self.times))]


def _running_mean(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The mean of each user's rows up to each. Shape: (N, K), (G+1,) -> (N, K)."""
    total = np.cumsum(codes, axis=0, dtype=np.float64)
    before = np.concatenate([np.zeros((1, codes.shape[1])), total])[starts[:-1]]
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    count = np.arange(1, len(codes) + 1) - starts[:-1][owner]
    mean: np.ndarray = ((total - before[owner]) / count[:, None]).astype(np.float32)
    return mean
