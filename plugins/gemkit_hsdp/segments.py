"""How the ids of a table are cut for FBGEMM, which gives each piece to one warp or thread of a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECES = 1024
"""Of each table on a GPU, however many ids there are, so that all processes have as many."""


def pieces_on(device: torch.device) -> int:
    """Into how many pieces each table's ids are cut. On a CPU one loop goes over all of them anyway."""
    return PIECES if device.type == "cuda" else 1


def piece_lengths(counts: Sequence[int], pieces: int, device: torch.device) -> Tensor:
    """Lengths of nearly equal pieces, which stand for examples. Shape: (tables,) -> (tables * pieces,) int32."""
    of_table = torch.tensor(counts, dtype=torch.int64).unsqueeze(1)
    longer = torch.arange(pieces) < of_table % pieces
    return (of_table // pieces + longer).view(-1).to(device=device, dtype=torch.int32)
