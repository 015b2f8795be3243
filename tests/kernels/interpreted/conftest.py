"""Checks that run kernels in Triton's interpreter: `tests/kernels/test_interpreter.py` starts them, in processes of
their own, because Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from gemkit_kernels import paths

assert os.environ.get("TRITON_INTERPRET") == "1", "start these with TRITON_INTERPRET=1"


@pytest.fixture(autouse=True)
def kernels_on_the_cpu() -> Iterator[None]:
    """Operators start their kernels, which the interpreter runs."""
    with paths.forced(paths.TRITON):
        yield


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
