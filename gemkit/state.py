"""What a checkpoint holds of a training run: weights, optimisers, random streams, position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemkit.config.fields import to_mapping
from gemkit.data.schema import Schema
from gemkit.interfaces import TransferStrategy
from gemkit.runs import checkpoint
from gemkit.session import Model, check_fingerprint

SQUARES, TRANSFER = "table_squares.", "transfer."


class TrainingState:
    """Counters of a training run, and their way into and out of checkpoint files.

    `best` holds what prediction needs; `last` everything that goes on.

    Attributes:
        step: Optimiser steps done.
        epoch, batch: Position in the data: `batch` micro-batches of `epoch` have been read.
        examples: Examples seen.
        best, best_step, waited: Best monitored value, its step, and validations since.
        stopped: Whether training has come to its end.
        train_s: Seconds of training, validations apart.
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
        self.best: float | None = None
        self.best_step = self.waited = 0
        self.stopped = False
        self.train_s = 0.0

    _counters = ("step", "epoch", "batch", "examples", "best", "best_step", "waited", "stopped", "train_s")

    def save(self, path: Path) -> None:
        """Writes everything that training needs to go on."""
        tensors = dict(self.model.weights())
        tensors |= {SQUARES + name: value for name, value in self.model.embeddings.optimizer_state().items()}
        if self.transfer:
            tensors |= {TRANSFER + name: value for name, value in self.transfer.state_dict().items()}
        rest: dict[str, Any] = {}
        nested = {f"optimizer{i}": o.state_dict() for i, o in enumerate(self.optimizers)}
        for prefix, value in (nested | {"rng": checkpoint.rng_state()}).items():
            found, rest[prefix] = checkpoint.flatten_state(prefix, value)
            tensors |= found
        counters = {name: getattr(self, name) for name in self._counters}
        checkpoint.save(path, tensors, self._header() | {"counters": counters, "rest": rest})

    def load(self, path: Path) -> None:
        """Goes back to a saved state.

        Raises:
            GemkitError: The checkpoint is missing or damaged, of another model, or of other data.
        """
        tensors, state = checkpoint.load(path)
        check_fingerprint(self.fingerprint, state["fingerprint"], self.schema, str(path))
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

    def save_best(self, path: Path) -> None:
        """Writes what prediction needs."""
        checkpoint.save(path, self.model.weights(), self._header() | {"step": self.step})

    def load_best(self, path: Path) -> None:
        """Goes back to the best weights."""
        self.model.load_weights(checkpoint.load(path)[0], str(path))

    def _header(self) -> dict[str, Any]:
        return {"schema": to_mapping(self.schema), "fingerprint": self.fingerprint}


def _copy(views: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    for name, view in views.items():
        view.copy_(tensors[prefix + name])
