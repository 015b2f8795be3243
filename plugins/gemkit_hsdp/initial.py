"""The first rows of embedding tables, any block of them without the others."""

from __future__ import annotations

import torch
from torch import Tensor

from gemkit.nn.init import named_seed

BLOCK = 2**20
"""Rows that are drawn from one stream of random numbers."""

SCALE = 0.1


def fill_rows(out: Tensor, name: str, seed: int, dim: int, row: int = 0, column: int = 0) -> None:
    """Fills a block of a table whose rows have `dim` numbers, uniform within +-SCALE dim^-0.5, from (seed, name).

    Row 0, "unknown", is hardly trained, so its start is what it says: zero.

    Args:
        out: (rows, columns); from `row` and `column` on.
    """
    bound, end = SCALE * dim**-0.5, row + out.shape[0]
    for block in range(row // BLOCK, -(-end // BLOCK)):
        first, last = max(row, block * BLOCK), min(end, (block + 1) * BLOCK)
        stream = f"table/{name}" + (f"/{block}" if block else "")
        generator = torch.Generator().manual_seed(named_seed(seed, stream))
        drawn = torch.empty(last - block * BLOCK, dim).uniform_(-bound, bound, generator=generator)
        out[first - row : last - row] = drawn[first - block * BLOCK :, column : column + out.shape[1]]
    if row == 0 and out.shape[0]:
        out[0] = 0.0
