"""How long processes wait for each other, and for one that is gone."""

from __future__ import annotations

import ctypes
import datetime
import signal
import sys

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def wait_at_most(mesh: DeviceMesh, timeout: datetime.timedelta) -> DeviceMesh:
    """A mesh whose groups wait as long as all processes do; they begin with a default of PyTorch's."""
    for group in mesh.get_all_groups():
        dist.distributed_c10d._set_pg_timeout(timeout, group)
    return mesh


def die_with_parent() -> None:
    """On Linux, the kernel kills this process when the one that has started it ends.

    It may be waiting for that one in a collective of GPUs, which does not notice, and would keep its GPU.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
