"""Sharded tables compute what tables of one process do: lookups, row-wise AdaGrad, averages over groups."""

from __future__ import annotations

import json
import sys

import gemkit_hsdp.initial
import pytest
import torch
from gemkit_hsdp.initial import fill_rows
from launch import HERE, torchrun

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""


GROUPED = [
    "two-dimensional",
    "two-dimensional, whole tables, replicas side by side",
    "two-dimensional, fp16",
]


def differences(*words: str) -> dict[str, float]:
    """What tables_worker.py prints, by case."""
    done = torchrun(4, *words)
    assert done.returncode == 0, done.stdout[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["case"]: row["difference"] for row in rows}


def test_four_processes_do_what_one_does() -> None:
    found = differences(str(HERE / "tables_worker.py"))
    alone = ["row_wise", "table_wise", "auto, tiny replicated", "prefetched", "fp16", "fp16 by chance"]
    alone += ["unreached", "in pieces", "sent in half"]
    assert list(found) == [*alone, *GROUPED]
    assert 1e-6 < found.pop("sent in half") < 1e-3  # rows of about 0.5, rounded by a 2,048th of themselves
    assert max(found.values()) < 1e-6, found
    assert found["fp16 by chance"] == 0, "copies have parted"


def test_groups_of_gpus_do_what_those_of_cpus_do() -> None:
    found = differences("--no-python", sys.executable, "-O", str(HERE / "tables_worker.py"), "collection")
    assert list(found) == GROUPED and max(found.values()) < 1e-6, found


def test_no_room_is_said_with_what_would_help() -> None:
    done = torchrun(1, str(HERE / "tables_worker.py"), "too large")
    assert done.returncode == 0, done.stdout[-4000:]
    (row,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert row["where"] == "parallel" and "no room for tables of 36,000.0 GB on 1 processes" in row["what"]
    assert "parallel.embedding_precision=fp16" in row["fix"]


def test_any_block_of_rows_starts_as_in_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemkit_hsdp.initial, "BLOCK", 7)
    whole = torch.empty(30, 8)
    fill_rows(whole, "item", 3, 8)
    assert whole[0].abs().max() == 0 and len(whole.unique()) > 200
    for row, column, rows, columns in ((0, 0, 30, 8), (5, 0, 12, 8), (14, 4, 7, 4), (29, 0, 1, 8), (0, 4, 3, 2)):
        block = torch.empty(rows, columns)
        fill_rows(block, "item", 3, 8, row, column)
        assert torch.equal(block, whole[row : row + rows, column : column + columns])
