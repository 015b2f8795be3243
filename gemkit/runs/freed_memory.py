"""On a CPU, memory that a step has freed stays with the process: the next step wants it again."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""
NEVER = -1
LARGEST = 32 << 20
"""Bytes of the largest block that is kept, the most that glibc takes. Larger ones, such as tables, still go back."""


def keep_freed_memory(device: torch.device) -> bool:
    """Tells glibc to keep freed blocks of up to 32 MiB and not to give them back to the kernel.

    A training step frees its activations. By default glibc gives most of them back, and the kernel has to find and
    zero every page of the next step's. Nothing is changed on a GPU, with another C library, or where the environment
    has a word for malloc already: `MALLOC_...`, even `MALLOC_PERTURB_=0`, or `GLIBC_TUNABLES=glibc.malloc...`.

    Returns:
        Whether glibc was told, and took it.
    """
    named = any(name.startswith("MALLOC_") for name in os.environ)
    named |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if device.type != "cpu" or named or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, NEVER))
