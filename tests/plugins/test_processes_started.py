"""How many machines a run waits for: never for some that nobody has started."""

from __future__ import annotations

import pytest
from gemkit_hsdp.ddp import DdpConfig

from gemkit.errors import GemkitError
from gemkit.registry import load_registry

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")


def size(monkeypatch: pytest.MonkeyPatch, num_nodes: int | None, **environment: str) -> tuple[int, int]:
    """Processes a machine and machines, on CPUs."""
    for name in (*LAUNCHERS, "NODE_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found: tuple[int, int] = load_registry().build("parallel", DdpConfig(num_nodes=num_nodes))._size(False)
    return found


def test_machines_that_nobody_has_started_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size(monkeypatch, None) == size(monkeypatch, 1) == (1, 1)
    with pytest.raises(GemkitError, match="nothing says which of the machines this is"):
        size(monkeypatch, 2)


def test_what_the_launcher_says_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "run", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    assert size(monkeypatch, None, **torchrun) == size(monkeypatch, 2, **torchrun) == (4, 2)
    with pytest.raises(GemkitError, match=r"num_nodes = 3, and 2 were started"):
        size(monkeypatch, 3, **torchrun)
    assert size(monkeypatch, 2, NODE_RANK="1") == size(monkeypatch, 2, SLURM_NODEID="1") == (1, 2)
