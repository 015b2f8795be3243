"""Sharded tables compute what tables of one process do: lookups, row-wise AdaGrad, averages over groups."""

from __future__ import annotations

import json

import gemkit_hsdp.initial
import pytest
import torch
from gemkit_hsdp.initial import fill_rows
from launch import HERE, torchrun

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""


def test_four_processes_do_what_one_does() -> None:
    done = torchrun(4, str(HERE / "tables_worker.py"))
    assert done.returncode == 0, done.stdout[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["case"] for row in found] == [
        *("row_wise", "table_wise", "auto, tiny replicated", "prefetched", "two-dimensional"),
    ]
    for row in found:
        assert row["difference"] < 1e-6, row


def test_any_block_of_rows_starts_as_in_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemkit_hsdp.initial, "BLOCK", 7)
    whole = torch.empty(30, 8)
    fill_rows(whole, "item", 3, 8)
    assert whole[0].abs().max() == 0 and len(whole.unique()) > 200
    for row, column, rows, columns in ((0, 0, 30, 8), (5, 0, 12, 8), (14, 4, 7, 4), (29, 0, 1, 8), (0, 4, 3, 2)):
        block = torch.empty(rows, columns)
        fill_rows(block, "item", 3, 8, row, column)
        assert torch.equal(block, whole[row : row + rows, column : column + columns])
