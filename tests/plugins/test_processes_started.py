"""How many machines a run waits for: never for some that nobody has started."""

from __future__ import annotations

import pytest
from gemkit_hsdp.ddp import DdpConfig

from gemkit.errors import GemkitError
from gemkit.registry import load_registry

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")


def size(monkeypatch: pytest.MonkeyPatch, num_nodes: int | None, **environment: str) -> tuple[int, int]:
    """Processes a machine and machines, on CPUs."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found: tuple[int, int] = load_registry().build("parallel", DdpConfig(num_nodes=num_nodes))._size(False)
    return found


def test_machines_that_nobody_has_started_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size(monkeypatch, None) == size(monkeypatch, 1) == (1, 1)
    for fabrics_own in ({}, {"NODE_RANK": "0"}):  # which Fabric leaves in the environment of a process that it launched
        with pytest.raises(GemkitError, match=r"num_nodes = 2, and 1 was started"):
            size(monkeypatch, 2, **fabrics_own)


def test_what_the_launcher_says_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "run", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    assert size(monkeypatch, None, **torchrun) == size(monkeypatch, 2, **torchrun) == (4, 2)
    with pytest.raises(GemkitError, match=r"num_nodes = 3, and 2 were started"):
        size(monkeypatch, 3, **torchrun)
    slurm = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}
    assert size(monkeypatch, None, **slurm) == size(monkeypatch, 2, **slurm) == (8, 2)
