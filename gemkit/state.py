"""What a checkpoint holds of a training run: weights, optimisers, random streams, position."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemkit import __version__
from gemkit.config.fields import to_mapping
from gemkit.config.run import READING, TrainConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import TransferStrategy
from gemkit.runs import checkpoint, keeping
from gemkit.session import Model, check_fingerprint

SQUARES, TRANSFER, LOSSES = "table_squares.", "transfer.", "losses"

MAY_CHANGE = {
    "runs",
    "train.num_threads",
    "train.tensorboard",
    "train.save_predictions",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "loader.workers",
    "loader.worker_kind",
    "loader.prefetch",
    "loader.pin_memory",
}
"""Values of config.yaml that a resumed run may have changed: what is trained does not depend on them. Of the data
section all but how it is read: the fingerprint tells whether the built data set is the same."""


class TrainingState:
    """Where a training run stands, and its way into and out of checkpoint files.

    `best` holds what prediction needs; `last` everything that goes on.

    Attributes:
        step: Optimiser steps done.
        epoch, batch: Position in the data: `batch` micro-batches of `epoch` have been read.
        examples: Examples seen.
        validated: Step of the last validation.
        best, best_step, waited: Best monitored value, its step, and validations since.
        stopped: Whether training has come to its end early.
        train_s: Seconds of training, validations apart.
        wait_s: Seconds of these spent waiting for data.
        losses: Losses since the last row of the history.
    """

    def __init__(
        self,
        schema: Schema,
        fingerprint: str,
        model: Model,
        optimizers: Sequence[torch.optim.Optimizer],
        transfer: TransferStrategy | None,
    ) -> None:
        self.schema, self.fingerprint = schema, fingerprint
        self.model, self.optimizers, self.transfer = model, optimizers, transfer
        self.step = self.epoch = self.batch = self.examples = 0
        self.validated = 0
        self.best: float | None = None
        self.best_step = self.waited = 0
        self.stopped = False
        self.train_s = self.wait_s = 0.0
        self.losses: list[Tensor] = []
        self._saved_step: int | None = None

    _counters = (
        *("step", "epoch", "batch", "examples", "validated"),
        *("best", "best_step", "waited", "stopped", "train_s", "wait_s"),
    )

    def save(self, folder: Path) -> None:
        """Writes everything that training needs to go on, as the folder's last checkpoint.

        Raises:
            GemkitError: It cannot be written; the checkpoints before are as they were.
        """
        keep = self.model.run.train.keep_checkpoints
        keeping.check_space(folder, self.num_bytes)
        tensors = self._tensors()
        rest: dict[str, Any] = {}
        nested = {f"optimizer{i}": o.state_dict() for i, o in enumerate(self.optimizers)}
        for prefix, value in (nested | {"rng": checkpoint.rng_state()}).items():
            found, rest[prefix] = checkpoint.flatten_state(prefix, value)
            tensors |= found
        tensors[LOSSES] = torch.stack(self.losses) if self.losses else torch.zeros(0)
        counters = {name: getattr(self, name) for name in self._counters}
        state = self._header() | {"counters": counters, "rest": rest}
        keeping.save_last(folder, self.step, tensors, state, self._saved_step, keep)
        self._saved_step = self.step

    def load(self, folder: Path, say: Callable[[str], None]) -> None:
        """Goes back to the folder's last checkpoint, or to the newest one that is not damaged.

        A run that was stopped before its first checkpoint stays at its first step.

        Raises:
            GemkitError: All are damaged, or it is of another model, config or data; the first differences are named.
        """
        found = keeping.load_last(folder, say)
        if found is None:
            return
        tensors, state, path = found
        try:
            self._check(state, str(path))
            self.model.load_weights(tensors, str(path))
            _copy(self.model.embeddings.optimizer_state(), tensors, SQUARES)
            if self.transfer:
                own = {n.removeprefix(TRANSFER): t for n, t in tensors.items() if n.startswith(TRANSFER)}
                self.transfer.load_state_dict(own)
            for i, optimizer in enumerate(self.optimizers):
                optimizer.load_state_dict(checkpoint.unflatten_state(tensors, state["rest"][f"optimizer{i}"]))
            checkpoint.set_rng_state(checkpoint.unflatten_state(tensors, state["rest"]["rng"]))
            for name in self._counters:
                setattr(self, name, state["counters"][name])
            self.losses = list(tensors[LOSSES])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise GemkitError(
                f"{path.name} is not the checkpoint of such a training run: {type(error).__name__} {error}",
                where=str(path),
                fix="use a checkpoint that `gemkit train` wrote with this config",
            ) from error
        self._saved_step = self.step

    def save_best(self, folder: Path) -> None:
        """Writes what prediction needs."""
        checkpoint.save(folder / keeping.BEST, self.model.weights(), self._header() | {"step": self.step})

    def load_best(self, folder: Path) -> None:
        """Goes back to the best weights."""
        path = folder / keeping.BEST
        self.model.load_weights(checkpoint.load(path)[0], str(path))

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of this step is there."""
        return self._saved_step == self.step

    @property
    def num_bytes(self) -> int:
        """About what one checkpoint takes on disk."""
        optimizers = sum(_num_bytes(_tensors_of(o.state_dict())) for o in self.optimizers)
        return _num_bytes(self._tensors().values()) + optimizers + 1_000_000

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.model.weights())
        tensors |= {SQUARES + name: value for name, value in self.model.embeddings.optimizer_state().items()}
        if self.transfer:
            tensors |= {TRANSFER + name: value for name, value in self.transfer.state_dict().items()}
        return tensors

    def _header(self) -> dict[str, Any]:
        return {
            "gemkit": __version__,
            "config": to_mapping(self.model.run),
            "schema": to_mapping(self.schema),
            "fingerprint": self.fingerprint,
        }

    def _check(self, state: Mapping[str, Any], where: str) -> None:
        own = self._header()
        for what, fix in (
            ("config", "put config.yaml back as it was, or start a new run with the new values"),
            ("schema", "restore the data set, or start a new run"),
        ):
            different = [d for d in differences(own[what], state[what]) if not _may_change(d.partition(":")[0])]
            if different:
                raise GemkitError(
                    f"the checkpoint is of another {what}: {len(different)} values differ, "
                    f"first {'; '.join(different[:3])}",
                    where=where,
                    fix=fix,
                )
        check_fingerprint(self.fingerprint, state["fingerprint"], self.schema, where)


def differences(here: Any, there: Any, path: str = "") -> Iterator[str]:
    """``a.b: 1 here, 2 in the checkpoint`` for each value in which two nested mappings differ."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(here.get(key, "nothing"), there.get(key, "nothing"), inner)
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif here != there:
        yield f"{path}: {_short(here)} here, {_short(there)} in the checkpoint"


def check_room(state: TrainingState, folder: Path, train: TrainConfig) -> None:
    """Whether all checkpoints of a run will find room, asked before the first step.

    Raises:
        GemkitError: They will not.
    """
    # Adam's moments do not exist yet: two more of the dense part. One file is being written while others are there.
    moments = 2 * sum(p.numel() * p.element_size() for p in state.model.dense.parameters())
    keeping.check_space(folder, (state.num_bytes + moments) * (3 + train.keep_checkpoints))


def _may_change(key: str) -> bool:
    section, option = re.split(r"[.\[]", f"{key}.")[:2]
    return key in MAY_CHANGE or (section == "data" and (option == "root" or option not in READING))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _num_bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _tensors_of(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping | list | tuple):
        for value in nested.values() if isinstance(nested, Mapping) else nested:
            yield from _tensors_of(value)


def _copy(views: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    for name, view in views.items():
        view.copy_(tensors[prefix + name])
