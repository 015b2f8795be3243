"""What a checkpoint holds of a training run: weights, optimisers, random streams, position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemkit import __version__
from gemkit.config.fields import to_mapping
from gemkit.config.resume import PRECISION, may_differ
from gemkit.config.run import TrainConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend, TransferStrategy
from gemkit.pieces import Pieces, fill, pieces_of
from gemkit.runs import checkpoint, keeping, nested, rng
from gemkit.runs.checkpoint import Stored
from gemkit.runs.copies import load_copies, pieces_of_copies, pieces_of_tables
from gemkit.runs.optimizers import load_optimizer
from gemkit.runs.saver import Saver
from gemkit.session import TABLES, Model, check_fingerprint

SQUARES, TRANSFER, LOSSES = "table_squares.", "transfer.", "losses"


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
        snapshot_s: Time of the newest example that the weights know, when training is over; seconds since 1970.
    """

    def __init__(
        self,
        schema: Schema,
        fingerprint: str,
        model: Model,
        optimizers: Sequence[torch.optim.Optimizer],
        transfer: TransferStrategy | None,
        backend: ParallelBackend,
        snapshot_s: int = 0,
    ) -> None:
        self.snapshot_s = snapshot_s
        self.schema, self.fingerprint = schema, fingerprint
        self.backend, self.saver = backend, Saver(backend, model.run.train.async_checkpoints)
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
        tensors = self._pieces()
        rest: dict[str, Any] = {}
        first = self.backend.rank == 0
        for i, optimizer in enumerate(self.optimizers):
            found, rest[f"optimizer{i}"] = nested.flatten_state(f"optimizer{i}", optimizer.state_dict())
            tensors |= {name: pieces_of(value, first) for name, value in found.items()}
        own = f"rng{self.backend.rank}"
        found, streams = nested.flatten_state(own, rng.rng_state())
        tensors |= {name: pieces_of(value) for name, value in found.items()}
        rest |= dict(self.backend.gather_objects((own, streams)))
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        tensors[LOSSES] = pieces_of(self.backend.mean(losses), first)
        counters = {name: getattr(self, name) for name in self._counters}
        state = self._header() | {"counters": counters, "rest": rest, "world_size": self.backend.world_size}
        state["copies"] = self.model.embeddings.copies
        before, step, keep = self._saved_step, self.step, self.model.run.train.keep_checkpoints

        def publish(main: dict[str, Tensor], parts: dict[str, Any]) -> None:
            keeping.check_space(folder, sum(t.numel() * t.element_size() for t in main.values()))
            keeping.save_last(folder, step, main, state | parts, before, keep)

        self.saver.save(folder, tensors, publish)
        self._saved_step = self.step

    def load(self, folder: Path, say: Callable[[str], None]) -> bool:
        """Goes back to the folder's last checkpoint, or to the newest one that is not damaged.

        Returns:
            Whether there was one: a run that was stopped before its first checkpoint stays at its first step.

        Raises:
            GemkitError: All are damaged, or it is of another model, config or data; the first differences are named.
        """
        found = keeping.load_last(folder, say, self.backend)
        if found is None:
            return False
        tensors, state, path = found
        try:
            self._check(state, str(path))
            self.load_model(tensors, state, str(path))
            if self.transfer:
                own = {n.removeprefix(TRANSFER): tensors[n] for n in tensors if n.startswith(TRANSFER)}
                self.transfer.load_state_dict(own)
            for i, optimizer in enumerate(self.optimizers):
                load_optimizer(optimizer, f"optimizer{i}", state["rest"][f"optimizer{i}"], tensors)
            for name in self._counters:
                setattr(self, name, state["counters"][name])
            rank, world_size = self.backend.rank, self.backend.world_size
            if state["world_size"] == world_size:
                rng.set_rng_state(nested.unflatten_state(tensors, state["rest"][f"rng{rank}"]))
            else:  # no stream is that of a process then
                rng.seed_rng(self.model.run.seed + 1_000_003 * self.step + rank)
            self.losses = list(tensors[LOSSES].to(self.backend.fabric.device))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise GemkitError(
                f"{path.name} is not the checkpoint of such a training run: {type(error).__name__} {error}",
                where=str(path),
                fix="use a checkpoint that `gemkit train` wrote with this config",
            ) from error
        self._saved_step = self.step
        return True

    def load_model(self, tensors: Stored, state: Mapping[str, Any], where: str) -> None:
        """Weights, the tables' optimiser states, and how new the examples are that they know."""
        self.model.load_weights(tensors, where)
        for name, pieces in self.model.embeddings.state_pieces().items():
            fill(pieces, tensors, SQUARES + name)
        load_copies(self.model.embeddings, tensors, state.get("copies", 1), TABLES, SQUARES)
        self.snapshot_s = max(self.snapshot_s, int(state["snapshot_s"]))

    def save_best(self, folder: Path) -> None:
        """Writes what prediction needs."""
        state = self._header() | {"step": self.step}
        path = folder / keeping.BEST
        self.saver.save(folder, self.model.weights(), lambda main, parts: checkpoint.save(path, main, state | parts))

    def load_best(self, folder: Path) -> None:
        """Goes back to the best weights."""
        self.saver.wait()
        self.backend.agree(False)  # the first process has published them
        path = folder / keeping.BEST
        self.model.load_weights(checkpoint.load(path)[0], str(path))

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of this step is there."""
        return self._saved_step == self.step

    @property
    def num_bytes(self) -> int:
        """About what one checkpoint takes on disk."""
        held = sum(pieces.num_bytes for pieces in self._pieces().values())
        optimizers = sum(_num_bytes(_tensors_of(o.state_dict())) for o in self.optimizers)
        return held + optimizers + 1_000_000

    def _pieces(self) -> dict[str, Pieces]:
        tables = self.model.embeddings
        pieces = self.model.weights() | pieces_of_tables(tables, TABLES, SQUARES)
        pieces |= pieces_of_copies(tables, TABLES, SQUARES)
        if self.transfer:
            first = self.backend.rank == 0
            pieces |= {TRANSFER + name: pieces_of(value, first) for name, value in self.transfer.state_dict().items()}
        return pieces

    def _header(self) -> dict[str, Any]:
        return {
            "gemkit": __version__,
            "config": to_mapping(self.model.run),
            "schema": to_mapping(self.schema),
            "fingerprint": self.fingerprint,
            "snapshot_s": self.snapshot_s,
        }

    def _check(self, state: Mapping[str, Any], where: str) -> None:
        own = self._header()
        for what, fix in (
            ("config", "put config.yaml back as it was, or start a new run with the new values"),
            ("schema", "restore the data set, or start a new run"),
        ):
            here, there = _trained(own[what]), _trained(state[what])
            different = [d for d in differences(here, there) if not may_differ(d.partition(":")[0])]
            if different:
                raise GemkitError(
                    f"the checkpoint is of another {what}: {len(different)} values differ, "
                    f"first {'; '.join(different[:3])}",
                    where=where,
                    fix=fix,
                )
        check_fingerprint(self.fingerprint, state["fingerprint"], self.schema, where)


def _trained(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with what changes numbers of its parallel section: the rest says where things are."""
    section = mapping.get("parallel")
    if not isinstance(section, Mapping):
        return mapping
    return {**mapping, "parallel": {name: section.get(name, usual) for name, usual in PRECISION.items()}}


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
