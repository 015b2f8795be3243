"""Runs of several processes: who is slow, which folder is gone on with, and whose totals count."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from gemkit.data.loader import Loader
from gemkit.registry import load_registry
from gemkit.runs import opening
from gemkit.runs.balance import LoadBalance
from gemkit.runs.opening import open_folder
from gemkit.session import open_dataset
from gemkit.testing.runs import silent, tiny_run


class Alone:
    """The first of several processes, whose others say what a test tells them to."""

    def __init__(self, *others: Any) -> None:
        self.rank, self.world_size, self.others = 0, 1 + len(others), others
        self.said: list[Any] = []

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def broadcast(self, value: Any) -> Any:
        self.said.append(value)
        return value


def test_a_slow_process_is_named_once() -> None:
    backend = Alone((10.0, 0.0, "node-a"), (90.0, 1e6, "node-b"))
    balance, said = LoadBalance(backend), []  # type: ignore[arg-type]
    for _ in range(2):
        balance.count([])
        row = balance.lap(said.append)
    assert row["rank_events"] == [0.0, 10.0, 90.0] and row["rank_busy_s"][2] == 1e6
    assert row["balance"] == pytest.approx(1 / 3, rel=1e-3)
    (note,) = said
    assert "process 2 on node-b" in note and "90 events" in note
    assert balance.busy_s is not None and balance.busy_s > 1e6


def test_one_process_has_nothing_to_compare() -> None:
    balance = LoadBalance(Alone())  # type: ignore[arg-type]
    assert balance.busy_s is None
    balance.count([])
    assert balance.lap(print) == {} and balance.busy_s is not None


def test_processes_that_were_started_again_go_on_with_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, agents = load_registry(), [TCPStore("localhost", 0, is_master=True) for _ in range(2)]

    def opened(launch: int | None, *words: str, new: bool = True) -> Any:
        """The folder that a process of a launch opens, a new process or the one before."""
        if new:
            monkeypatch.setattr(opening, "_OPENED", itertools.count())
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(launch is not None))
        if launch is not None:
            monkeypatch.setenv("MASTER_ADDR", "localhost")
            monkeypatch.setenv("MASTER_PORT", str(agents[launch].port))
        run, backend = tiny_run(tmp_path, *words), Alone()
        with contextlib.ExitStack() as resources:
            found = open_folder(run, registry, backend, None, ["gemkit", "train"], silent(), resources)  # type: ignore[arg-type]
        assert backend.said == [(str(found.folder.path), found.resumed)]  # the others are told
        return found

    first, second = opened(0), opened(0, new=False)
    assert not (first.resumed or second.resumed)
    assert opened(0) == first._replace(resumed=True)
    assert opened(0, new=False) == second._replace(resumed=True)
    other_run, other_launch, by_hand = opened(0, "seed=9"), opened(1), opened(None)
    assert not (other_run.resumed or other_launch.resumed or by_hand.resumed)
    assert len({one.folder for one in (first, second, other_run, other_launch, by_hand)}) == 5
    assert opened(1) == other_launch._replace(resumed=True)


def test_losses_of_shares_add_up_to_that_of_the_global_batch(tmp_path: Path) -> None:
    """However unevenly labels are masked among the processes, the mean of their losses is the global one."""
    run, registry = tiny_run(tmp_path), load_registry()
    dataset = open_dataset(run, registry, silent())
    whole = Loader(dataset, "train", batch_size=50, seed=1).batch(0, 0)
    parts = [Loader(dataset, "train", batch_size=50, seed=1, rank=r, world_size=4).batch(0, 0) for r in range(4)]
    assert whole.totals is None and sorted(p.size for p in parts) == [12, 12, 13, 13]
    counts = (whole.masks * whole.weights.unsqueeze(1)).sum(0)
    for part in parts:
        assert part.totals is not None
        torch.testing.assert_close(4 * part.totals, counts)
    losses = whole.labels + 0.5
    expected = (losses * whole.masks * whole.weights.unsqueeze(1)).sum(0) / counts
    shares = [((p.labels + 0.5) * p.masks * p.weights.unsqueeze(1)).sum(0) / p.totals for p in parts]
    torch.testing.assert_close(torch.stack(shares).mean(0), expected)
    assert len(np.unique([int(p.masks.sum()) for p in parts])) > 1  # the test would not notice local means otherwise
