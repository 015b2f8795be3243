"""Initialisation from (seed, module name) instead of one running random stream.

Two models that differ in one block give every shared module the same first weights, bit for bit; this is
what pairs the runs of an ablation.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed made from `seed` and `name`, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def init_parameters(module: nn.Module, seed: int) -> None:
    """Calls `reset_parameters` of every submodule, each under a random stream of its own.

    Raises:
        TypeError: A module holds parameters of its own and has no `reset_parameters`.
    """
    with torch.random.fork_rng(devices=[]):
        for name, child in module.named_modules():
            own = [n for n, _ in child.named_parameters(recurse=False)]
            if not own:
                continue
            reset = getattr(child, "reset_parameters", None)
            if reset is None:
                raise TypeError(f"{type(child).__name__} ({name}) holds {own} but has no reset_parameters()")
            torch.manual_seed(named_seed(seed, name))
            reset()
