"""Embedding tables that every process holds whole, and updates alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gemkit.pieces import Pieces, pieces_of
from gemkit_hsdp.tables import TorchTables, _RowwiseAdagradLookup, update_rows


class ReplicatedTables(TorchTables):
    """Row-wise AdaGrad on the rows of all processes: each sends its ids and gradients to all others.

    For small tables: what is sent grows with the batch, and every process does the whole update. A process's gradient
    counts as its share of the mean over processes, as that of the dense part does.
    """

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        places = self._rows(ids, counts)
        rows: Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]
            self.anchor, self.weights, self.squares, places, self
        )
        return rows

    def weight_pieces(self) -> dict[str, Pieces]:
        return {name: pieces_of(w, dist.get_rank() == 0) for name, w in self.tables().items()}

    def state_pieces(self) -> dict[str, Pieces]:
        return {name: pieces_of(s, dist.get_rank() == 0) for name, s in self.optimizer_state().items()}


class _Lookup(_RowwiseAdagradLookup):
    """The lookup of one process, whose backward pass sees the rows and gradients of all."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        world, tables, device = dist.get_world_size(), ctx.tables, ctx.rows.device
        lengths = torch.zeros(world + 1, dtype=torch.int64, device=device)
        lengths[dist.get_rank()] = len(ctx.rows)
        if tables.stochastic and dist.get_rank() == 0:
            # Copies must round alike. The first process draws for all, from the stream that its checkpoints hold.
            lengths[world] = torch.randint(2**62, ())
        dist.all_reduce(lengths)
        *every, drawn = lengths.tolist()
        rows = torch.cat(_gathered(ctx.rows, every))
        gradient = torch.cat(_gathered(gradients[0] / world, every))
        chance = torch.Generator(device).manual_seed(drawn) if tables.stochastic else None
        update_rows(tables, ctx.weights, ctx.squares, rows, gradient, chance)
        return None, None, None, None, None


def _gathered(own: Tensor, lengths: list[int]) -> list[Tensor]:
    """Every process's rows, in order of rank."""
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:n] for part, n in zip(parts, lengths, strict=True)]
