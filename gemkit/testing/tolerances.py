"""How close two results must be that are equal but for rounding: one table, by type."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2e-3, 5e-4),
    torch.bfloat16: (2e-2, 2e-2),
}
"""Type -> (relative, absolute)."""


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Compares within the tolerance of `actual`'s type; whole numbers and truth values exactly.

    Raises:
        AssertionError: They differ; `what` says what they are.
    """
    relative, absolute = TOLERANCES.get(actual.dtype, (0.0, 0.0))

    def message(detail: str) -> str:
        return f"{what}: {detail}"

    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=relative, atol=absolute, msg=message)
