"""How processes that torchrun has started again find each other, and not those that have died.

torchrun keeps one store for all restarts (torch 2.13), in which the addresses of dead processes still stand: gloo would
read them and fail. So the processes that are alive agree on a name first, below which they then meet.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

LOOK_AGAIN_S = 0.5


def join(backend: str, timeout: datetime.timedelta) -> None:
    """Joins the process group of the processes that torchrun has started with this one."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(address, port, world, is_master=rank == 0 and not agents, timeout=timeout)
    name = agreed(store, rank, world, timeout)
    dist.init_process_group(backend, store=PrefixStore(name, store), rank=rank, world_size=world, timeout=timeout)


def agreed(store: Store, rank: int, world: int, timeout: datetime.timedelta) -> str:
    """A name that all living processes have, and no dead one had.

    The first process writes a name of its own. The others answer to the name that they find with one of their own, and
    take it when the first one has confirmed theirs. An old name is never confirmed to a new process: it looks again.

    Raises:
        TimeoutError: Some process did not come.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("gemkit/name", own)
        for other in range(1, world):
            key = f"gemkit/{own}/answer/{other}"
            store.wait([key], timeout)
            store.set(f"gemkit/{own}/yes/{store.get(key).decode()}", "")
        return own
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        store.wait(["gemkit/name"], timeout)
        name = store.get("gemkit/name").decode()
        store.set(f"gemkit/{name}/answer/{rank}", own)
        try:
            store.wait([f"gemkit/{name}/yes/{own}"], datetime.timedelta(seconds=LOOK_AGAIN_S))
        except RuntimeError:  # DistStoreError: not yet
            continue
        return name
    raise TimeoutError(f"process {rank} has waited for the first one for {timeout}")
