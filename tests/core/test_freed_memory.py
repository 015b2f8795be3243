"""Freed memory that stays with the process: fewer pages to ask for, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")

PAGES_OF_A_ROUND = (32 << 20) // resource.getpagesize()
SCRIPT = """
import resource
import torch
from gemkit.runs.freed_memory import keep_freed_memory

kept = keep_freed_memory(torch.device({device!r}))
faults = []
for _ in range(20):
    blocks = [torch.ones(2 << 20) for _ in range(4)]  # 8 MiB each, as activations are
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, faults[-1] - faults[4])
"""


def told(device: str = "cpu", **environment: str) -> tuple[bool, int]:
    """Whether glibc was told, and the page faults of fifteen rounds of 32 MiB, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", SCRIPT.format(device=device)]
    out = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True).stdout.split()
    return out[0] == "True", int(out[1])


def test_the_next_step_finds_its_pages() -> None:
    kept, faults = told()
    assert kept
    assert faults < PAGES_OF_A_ROUND
    kept, faults = told(MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept
    assert faults > 7 * PAGES_OF_A_ROUND


@pytest.mark.parametrize("environment", [{"MALLOC_PERTURB_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}])
def test_the_environment_is_left_in_charge(environment: dict[str, str]) -> None:
    assert not told(**environment)[0]


def test_a_gpu_needs_none_of_it() -> None:
    assert not told("cuda")[0]
