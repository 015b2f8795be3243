"""What Fabric is told of devices and arithmetic."""

from __future__ import annotations

import torch

from gemkit.errors import GemkitError

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""train.precision -> Fabric's word for it."""


def uses_cuda(accelerator: str) -> bool:
    """Whether a backend with this `accelerator` runs on GPUs here.

    Raises:
        GemkitError: It must, and there are none.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise GemkitError(
            "parallel.accelerator = cuda, and PyTorch sees no CUDA device",
            where="parallel.accelerator",
            fix="parallel.accelerator=cpu, or see `gemkit doctor`",
        )
    return accelerator != "cpu" and torch.cuda.is_available()
