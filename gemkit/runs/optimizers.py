"""An optimiser's state out of a checkpoint, where its parameters are whole or sharded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gemkit.pieces import fill, pieces_of
from gemkit.runs import nested
from gemkit.runs.checkpoint import Stored


def load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, rest: Any, tensors: Stored) -> None:
    """Puts a state back that `flatten_state` took apart.

    Args:
        prefix: Of the names of its tensors.
        rest: What was left of it.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict(nested.unflatten_state(_Sharded(prefix, parameters, tensors), rest))


class _Sharded(Mapping[str, Tensor]):
    """The tensors of a state; those of a sharded parameter's shape sharded like it."""

    def __init__(self, prefix: str, parameters: list[Tensor], tensors: Stored) -> None:
        self._prefix, self._parameters, self._tensors = prefix, parameters, tensors

    def __getitem__(self, name: str) -> Tensor:
        # <prefix>.state.<number of the parameter>.<what>
        words = name.removeprefix(f"{self._prefix}.").split(".")
        if words[0] == "state" and len(words) == 3:
            parameter = self._parameters[int(words[1])]
            if self._tensors.shape(name) == tuple(parameter.shape) and parameter.dim():
                like = torch.zeros_like(parameter, requires_grad=False)
                fill(pieces_of(like), self._tensors, name)
                return like
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
