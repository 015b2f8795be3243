"""How long processes wait for each other, and that they do not outlive the one that has started them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import time
from gemkit_hsdp.waiting import die_with_parent
die_with_parent()
print("lives", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os._exit(3)
"""
GROUPS = """
import datetime, os
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from gemkit_hsdp.waiting import wait_at_most
os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = wait_at_most(DeviceMesh("cpu", [[0]], mesh_dim_names=("a", "b")), datetime.timedelta(seconds=77))
print([group._get_backend(group._device_types[0]).options._timeout.seconds for group in mesh.get_all_groups()])
"""


def output_of(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_process_dies_with_the_one_that_has_started_it() -> None:
    done = output_of(PARENT)
    assert done.returncode == 3, done.stderr
    child, end = Path("/proc") / done.stdout.strip(), time.monotonic() + 20

    def lives() -> bool:
        return child.exists() and "\nState:\tZ" not in (child / "status").read_text(encoding="utf-8")

    while lives() and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives()


def test_groups_of_a_mesh_wait_as_long_as_all_processes() -> None:
    done = output_of(GROUPS)
    assert done.returncode == 0 and done.stdout.strip() == "[77, 77]", done.stdout + done.stderr
