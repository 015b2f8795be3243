"""Which path an operation takes on a device, and which it took."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PYTORCH, TRITON = "pytorch", "triton"

_log = logging.getLogger("gemkit_kernels")
_taken: dict[str, str] = {}
_forced: list[str] = []


def choose(op: str, device: str, unfit: str = "") -> str:
    """The path of `op` on tensors of `device`; it is logged, as INFO of `gemkit_kernels`.

    Triton runs on GPUs from compute capability 8.0 on, where it is installed.

    Args:
        device: The device's type.
        unfit: Why the kernels cannot take these tensors, if they cannot.
    """
    path, reason = (_forced[-1], "asked for") if _forced else _fitting(device, unfit)
    _taken[op] = path
    _log.info("%s runs in %s: %s", op, {PYTORCH: "PyTorch", TRITON: "Triton"}[path], reason)
    return path


# What `torch.compiler.assume_constant_result` does, which imports torch._dynamo for it: two seconds.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def taken() -> dict[str, str]:
    """The path that each operation took last in this process."""
    return dict(_taken)


@contextmanager
def forced(path: str) -> Iterator[None]:
    """Takes `path` whatever the device: for tests and benchmarks."""
    _forced.append(path)
    try:
        yield
    finally:
        _forced.pop()


def _fitting(device: str, unfit: str) -> tuple[str, str]:
    if device != "cuda":
        return PYTORCH, f"the tensors are on a {device} device"
    missing = _missing()
    if missing or unfit:
        return PYTORCH, missing or unfit
    return TRITON, "a GPU, and Triton"


@functools.cache
def _missing() -> str:
    """What the kernels need and this machine lacks. Asked once: looking for a package takes longer than a kernel."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 8 else f"the GPU's compute capability is {major}.{minor}, the kernels need 8.0"
