"""Ids of tables in pieces: nearly equal, and the same rows and updates however many there are."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from gemkit_hsdp import tables
from gemkit_hsdp.segments import PIECES, piece_lengths, pieces_on
from gemkit_hsdp.tables import FusedTables

from gemkit.testing import bench

CPU = torch.device("cpu")


@pytest.mark.parametrize("pieces", [1, 3, 1024])
def test_pieces_are_nearly_equal(pieces: int) -> None:
    counts = [0, 1, 2, 1000, 1025]
    lengths = piece_lengths(counts, pieces, CPU)
    assert lengths.shape == (len(counts) * pieces,) and lengths.dtype == torch.int32
    of_table = lengths.view(len(counts), pieces)
    assert of_table.sum(1).tolist() == counts and int((of_table.amax(1) - of_table.amin(1)).max()) <= 1


def test_gpus_have_many() -> None:
    assert (pieces_on(CPU), pieces_on(torch.device("cuda"))) == (1, PIECES)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="FBGEMM is not installed")
@pytest.mark.parametrize("pieces", [3, 64])
def test_unpooled_tables_do_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(tables, "WHOLE_BYTES", 0)
    schema: Any = bench.dataset().schema
    one, cut = (FusedTables(schema, bench.DIM, lr=0.1, eps=1e-8, seed=1) for _ in range(2))
    found = []
    for each, count in ((one, 1), (cut, pieces)):
        monkeypatch.setattr(tables, "pieces_on", lambda device, count=count: count)
        rows = each(bench.make_batch().ids)
        torch.autograd.backward(list(rows.values()), [bench.noise(key, *v.shape) for key, v in rows.items()])
        assert not each.whole
        found.append(rows)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    for name, weights in one.tables().items():
        assert torch.allclose(weights, cut.tables()[name], atol=1e-7), name
