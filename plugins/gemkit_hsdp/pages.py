"""Pages of 2 MiB below embedding tables, so that a row anywhere is found with fewer steps."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

LEAST = 32 << 20
"""Bytes from which on a tensor has a mapping of its own, whatever glibc has been told (`gemkit.runs.freed_memory`)."""


def zeros_in_huge_pages(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros on the CPU, in memory that Linux has been asked to lay in huge pages (madvise(2)).

    A step reads and writes rows all over the tables. With pages of 4 KiB the processor looks up where most of them are.
    Without Linux, or where an administrator has switched huge pages off, these are zeros like any.
    """
    values = torch.empty(size, dtype=dtype)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = values.data_ptr() + values.nbytes - start
    if advice is not None and values.nbytes >= LEAST:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE), advice
        )
    return values.zero_()
