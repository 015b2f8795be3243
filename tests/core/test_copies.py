"""Tables that groups of processes hold once each: what a checkpoint keeps of copies that differ, and who takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemkit_hsdp.tables import TorchTables
from torch import Tensor

from gemkit.runs.checkpoint import Stored
from gemkit.runs.copies import load_copies, pieces_of_copies, pieces_of_tables
from gemkit.testing import bench

NAMES = "tables.", "table_squares."


def tables(seed: int, copy: int = 0, copies: int = 1) -> TorchTables:
    """Tables of the synthetic data set whose optimiser has been at work."""
    made = TorchTables(bench.dataset().schema, bench.DIM, lr=0.1, eps=1e-8, seed=seed)
    made.squares.uniform_(generator=torch.Generator().manual_seed(seed))
    made.copy, made.copies = copy, copies
    return made


@pytest.fixture
def groups() -> list[TorchTables]:
    """Three copies that differ in two tables, and are saved."""
    found = [tables(seed, copy=seed, copies=3) for seed in range(3)]
    for one in found:
        one.apart = frozenset(list(one.tables())[:2])
    return found


@pytest.fixture
def stored(groups: list[TorchTables], tmp_path: Path) -> Stored:
    """The checkpoint of all of them."""
    tensors: dict[str, Tensor] = {
        name: held.pieces[0].values for name, held in pieces_of_tables(groups[0], *NAMES).items()
    }
    for one in groups:
        for name, held in pieces_of_copies(one, *NAMES).items():
            for _, values in held.pieces:
                tensors[name] = values
    return Stored(tmp_path / "last.safetensors", {name: values.clone() for name, values in tensors.items()}, {})


def loaded(into: TorchTables, stored: Stored, copies: int = 3) -> dict[str, Tensor]:
    """What tables hold that have gone on from a checkpoint."""
    for name, held in pieces_of_tables(into, *NAMES).items():
        held.pieces[0].values.copy_(stored[name])
    load_copies(into, stored, copies, *NAMES)
    return {name: held.pieces[0].values for name, held in pieces_of_tables(into, *NAMES).items()}


def test_all_name_the_same_and_each_its_own(groups: list[TorchTables]) -> None:
    found = [pieces_of_copies(one, *NAMES) for one in groups]
    assert found[0].keys() == found[1].keys() == found[2].keys() and len(found[0]) == 2 * 2 * 2
    for copy, pieces in enumerate(found):
        here = {name for name, held in pieces.items() if held.pieces}
        assert here == {name for name in pieces if name.startswith(f"copies.{copy}.")}
    for one in groups:
        one.apart = frozenset()
        assert not pieces_of_copies(one, *NAMES), "copies that are alike are saved once"


def test_as_many_groups_go_on_with_a_copy_each(groups: list[TorchTables], stored: Stored) -> None:
    for one in groups:
        fresh = tables(9, copy=one.copy, copies=3)
        found = loaded(fresh, stored)
        assert fresh.apart == one.apart
        for name, held in pieces_of_tables(one, *NAMES).items():
            own = held.pieces[0].values if name.partition(".")[2] in one.apart else stored[name]
            assert torch.equal(found[name], own), name


@pytest.mark.parametrize("copies", [1, 2])
def test_others_take_the_mean(groups: list[TorchTables], stored: Stored, copies: int) -> None:
    fresh = tables(9, copies=copies)
    found = loaded(fresh, stored)
    assert not fresh.apart
    held = [pieces_of_tables(one, *NAMES) for one in groups]
    for name, values in found.items():
        all_copies = torch.stack([pieces[name].pieces[0].values for pieces in held])
        expected = all_copies.mean(0) if name.partition(".")[2] in groups[0].apart else stored[name]
        assert torch.allclose(values, expected, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("copies", [0, -1, 10**12])
def test_a_forged_number_of_copies_is_refused(stored: Stored, copies: int) -> None:
    with pytest.raises(ValueError, match="copies of tables"):
        loaded(tables(9), stored, copies)


def test_a_checkpoint_without_copies_is_taken_as_it_is(stored: Stored, tmp_path: Path) -> None:
    alone = {name: values for name, values in stored.items() if not name.startswith("copies.")}
    found = loaded(tables(9, copy=1, copies=3), Stored(tmp_path / "last.safetensors", alone, {}), copies=1)
    assert all(torch.equal(values, alone[name]) for name, values in found.items())
