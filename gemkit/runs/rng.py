"""Python's, NumPy's and PyTorch's random generators, which plugins may use: seeded, saved and put back together."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch


def seed_rng(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's random generators; plugins may use any of them."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's random generators, for `flatten_state`."""
    import numpy as np

    name, keys, *others = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).copy()), *others),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts back what `rng_state` took. CUDA generators are left alone if their number has changed."""
    import numpy as np

    random.setstate(state["python"])
    name, keys, *others = state["numpy"]
    np.random.set_state((name, keys.numpy(), *others))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
