"""Processes that were started again agree on a name, whatever those before them left in the store."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from gemkit_hsdp import meeting
from gemkit_hsdp.meeting import agreed

WAIT = datetime.timedelta(seconds=20)


def meet(path: Path, ranks: tuple[int, ...], world: int, wait: datetime.timedelta = WAIT) -> list[str]:
    """What each of these processes (threads, here) agrees on."""
    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(agreed, dist.FileStore(str(path), -1), rank, world, wait) for rank in ranks]
        return [future.result() for future in futures]


def test_all_take_one_name_and_the_next_ones_another(tmp_path: Path) -> None:
    names = [meet(tmp_path / "store", (0, 1, 2), 3) for _ in range(3)]
    assert all(len(set(found)) == 1 for found in names)
    assert len({found[0] for found in names}) == 3


def test_a_name_of_the_dead_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others come first, and find the name of a first process that died after everybody had answered."""
    monkeypatch.setattr(meeting, "LOOK_AGAIN_S", 0.05)
    (old, *_) = meet(tmp_path / "store", (0, 1), 2)
    with ThreadPoolExecutor(2) as pool:
        store = dist.FileStore(str(tmp_path / "store"), -1)
        late = pool.submit(agreed, store, 1, 2, WAIT)
        with pytest.raises(TimeoutError):
            late.result(timeout=0.5)
        first = pool.submit(agreed, dist.FileStore(str(tmp_path / "store"), -1), 0, 2, WAIT)
        assert first.result() == late.result() != old


def test_a_process_that_waits_for_nobody_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LOOK_AGAIN_S", 0.05)
    meet(tmp_path / "store", (0, 1), 2)
    with pytest.raises(TimeoutError, match="process 1"):
        agreed(dist.FileStore(str(tmp_path / "store"), -1), 1, 2, datetime.timedelta(seconds=0.3))
