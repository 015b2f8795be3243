"""A run begins with what another one has learned: `train.start_from`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gemkit.config.fields import to_mapping
from gemkit.errors import GemkitError
from gemkit.runs import keeping
from gemkit.runs.checkpoint import Stored
from gemkit.runs.folder import RunFolder
from gemkit.runs.optimizers import load_optimizer
from gemkit.state import TRANSFER, TrainingState, differences


def start_from(state: TrainingState, run: Path, say: Callable[[str], None]) -> None:
    """Takes the last weights and optimiser states of another run; counters stay at the first step.

    What the transfer strategy trains goes on too if it is the same there, else it begins anew, with a note.

    Raises:
        GemkitError: There is no checkpoint, it is damaged, or of another model or other id spaces.
    """
    folder = RunFolder.open(run).checkpoints
    found = keeping.load_last(folder, say, state.backend)
    if found is None:
        raise GemkitError(f"{run} has no checkpoint", where="train.start_from", allowed="a run that was trained")
    tensors, saved, path = found
    try:
        here, there = to_mapping(state.schema)["tables"], saved["schema"]["tables"]
        if different := list(differences(here, there, "tables")):
            raise GemkitError(
                f"the run to start from has other id spaces: {'; '.join(different[:3])}",
                where="train.start_from",
                fix="start from a run on the same data set",
            )
        state.load_model(tensors, saved, str(path))
        count = len(state.optimizers)
        if not _transfer_goes_on(state, tensors):
            count = 1
            say("note: what the transfer strategy trains begins anew: the run to start from has none like it")
        for i, optimizer in enumerate(state.optimizers[:count]):
            _take_state(optimizer, f"optimizer{i}", saved["rest"][f"optimizer{i}"], tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise GemkitError(
            f"{path.name} is no checkpoint of such a model: {type(error).__name__} {error}", where=str(path)
        ) from error


def _transfer_goes_on(state: TrainingState, tensors: Stored) -> bool:
    """Takes what the other run's strategy has learned, if it is the same strategy; True if there is nothing to take."""
    if state.transfer is None:
        return True
    wanted = {name: tuple(value.shape) for name, value in state.transfer.state_dict().items()}
    found = {n.removeprefix(TRANSFER): tensors.shape(n) for n in tensors if n.startswith(TRANSFER)}
    if wanted == found:
        state.transfer.load_state_dict({name: tensors[TRANSFER + name] for name in found})
    return wanted == found


def _take_state(optimizer: torch.optim.Optimizer, prefix: str, rest: object, tensors: Stored) -> None:
    """Moments and step counts are the other run's, options stay this one's."""
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    load_optimizer(optimizer, prefix, rest, tensors)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
