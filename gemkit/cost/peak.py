"""The machine's matrix-product peak, which MFU is a share of."""

from __future__ import annotations

import functools
import time

import torch

SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""Rows and columns of the matrices: one size that is fast on few cores, one that keeps many busy."""
SECONDS = 0.1
"""For each size; where others compute as well, only some of the products are undisturbed."""


@functools.cache
def matmul_peak(device: str, dtype: torch.dtype, num_threads: int) -> float:
    """FLOP/s of the fastest of many square matrix products; measured once in a process.

    Args:
        device: Its type.
        num_threads: PyTorch's threads on a CPU, as they are set: what is measured holds for no other number.
    """
    # Not from the global stream: what a run computes must not depend on it.
    generator = torch.Generator(device).manual_seed(0)
    return max(_fastest(torch.rand(n, n, device=device, generator=generator).to(dtype)) for n in SIDES[device])


def _fastest(a: torch.Tensor) -> float:
    out = torch.empty_like(a)
    _seconds(a, out)  # the first finds its kernel and wakes its threads
    end_s, best_s = time.perf_counter() + SECONDS, _seconds(a, out)
    while time.perf_counter() < end_s:
        best_s = min(best_s, _seconds(a, out))
    return 2.0 * a.shape[0] ** 3 / best_s


def _seconds(a: torch.Tensor, out: torch.Tensor) -> float:
    began_s = time.perf_counter()
    torch.mm(a, a, out=out)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began_s
