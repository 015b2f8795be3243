"""Whether a component fits into memory, asked before it is built: the alternative is to be killed without a word."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError

COPIES = 4
"""Of each parameter that is trained: itself, its gradient, and AdamW's two moments."""


def available_bytes() -> int | None:
    """Memory that this process may still take, or None where the system does not say."""
    free = [number for number in (_of_system(), _of_container()) if number is not None]
    return min(free, default=None)


def check_fits(needed: int, what: str, sizes: dict[str, Any]) -> None:
    """
    Args:
        sizes: Dotted field -> value; the largest of them are named.

    Raises:
        GemkitError: `needed` bytes are more than there are.
    """
    free = available_bytes()
    if free is None or needed <= free:
        return
    largest = sorted(sizes, key=lambda name: _largest(sizes[name]), reverse=True)[:3]
    raise GemkitError(
        f"{what} needs {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free",
        where=", ".join(f"{name} = {sizes[name]}" for name in largest),
        fix="lower these values",
    )


def check_model(build: Callable[[], Any], sizes: dict[str, Any]) -> None:
    """Counts the whole model, and by `counted` each component on the way, before anything of it is made.

    What cannot be built without memory is not counted: a plugin may read files, or look at its own tensors.

    Args:
        build: Makes the model.

    Raises:
        GemkitError: It does not fit, or the model refuses its config.
    """
    import torch

    try:
        with torch.device("meta"):
            module = build()
    except GemkitError:
        raise
    except Exception:
        return
    check_fits(COPIES * _num_bytes(module), "the model, while it is trained,", sizes)


def counted(build: Callable[[], Any], what: str, sizes: dict[str, Any]) -> Any:
    """What `build` makes; inside `check_model` it is refused if its training would not fit.

    Raises:
        GemkitError: It does not fit.
    """
    import torch

    if not torch.empty(0).is_meta:
        return build()
    try:
        module = build()
    except (RuntimeError, OverflowError) as error:
        if "overflow" in str(error).lower():  # too large to be counted in 64 bits
            check_fits(2**63, what, sizes)
        raise
    check_fits(COPIES * _num_bytes(module), what, sizes)
    return module


def sizes_of(config: Any, prefix: str) -> dict[str, Any]:
    """The whole numbers of a config, alone or in lists, by dotted field."""
    values = {f"{prefix}.{f.name}": getattr(config, f.name) for f in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if _largest(value) > 1}


def _num_bytes(module: Any) -> int:
    return sum(int(t.numel() * t.element_size()) for t in (*module.parameters(), *module.buffers()))


def _largest(value: Any) -> int:
    numbers = value if isinstance(value, tuple) else (value,)
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)


def _of_system() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _of_container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        return limit - int((folder / "memory.current").read_text(encoding="ascii"))
    return None
