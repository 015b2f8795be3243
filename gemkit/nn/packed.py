"""The CLS tokens of each history right after its events: one jagged list for the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gemkit.nn.jagged import row_index


def pack(values: Tensor, cls: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of both.

        values  a b | c      cls  x | y      ->      a b x | c y

    Shape: values (T, E), cls (U, S, E), offsets (U+1,) -> rows (T + U S, E), offsets of the histories in them (U+1,).
    """
    histories, num_cls = cls.shape[:2]
    rows = torch.cat([values, cls.flatten(0, 1)])
    rows = torch.zeros_like(rows).index_copy(0, _places(offsets, values.shape[0], num_cls), rows)
    return rows, offsets + num_cls * torch.arange(histories + 1, device=offsets.device)


def unpack(rows: Tensor, offsets: Tensor, num_cls: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`; `offsets` are those of the events alone."""
    histories = offsets.shape[0] - 1
    total = rows.shape[0] - histories * num_cls
    rows = rows.index_select(0, _places(offsets, total, num_cls))
    return rows[:total], rows[total:].view(histories, num_cls, rows.shape[1])


def _places(offsets: Tensor, total: int, num_cls: int) -> Tensor:
    """Where the events stand, then where the CLS tokens do. Shape: (U+1,) -> (T + U S,)."""
    place, slot = (torch.arange(n, device=offsets.device) for n in (total, num_cls))
    history = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    of_cls = (offsets[1:] + num_cls * history).unsqueeze(1) + slot
    return torch.cat([place + num_cls * row_index(offsets, total), of_cls.view(-1)])
