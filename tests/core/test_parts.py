"""Checkpoints in parts: pieces of any layout become those of another, and what nobody needs goes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemkit.errors import GemkitError
from gemkit.pieces import Piece, Pieces, fill, overlap, pieces_of, written_here
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import PARTS, Stored
from gemkit.runs.parts import Writer, remove_unused, wait_for_parts, write_part
from gemkit.runs.saver import Saver

WORLD = 3
WHOLE = torch.arange(60.0).view(10, 6)


class FakeBackend:
    """As much of a parallel backend as writing asks for; its processes call one after the other, the first one last."""

    def __init__(self, rank: int, told: dict[int, Any], world_size: int = WORLD) -> None:
        self.rank, self.world_size, self.told = rank, world_size, told

    def broadcast(self, value: Any) -> Any:
        return self.told.setdefault("session", "5e551011")

    def gather_objects(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        return [self.told[r] for r in range(self.world_size)] if self.rank == 0 else []


def in_rows(tensor: Tensor, rank: int) -> Pieces:
    """Rows 0-3, 4-7, 8-9."""
    rows = slice(4 * rank, min(4 * rank + 4, len(tensor)))
    return Pieces(tuple(tensor.shape), (Piece((rows.start, *(0 for _ in tensor.shape[1:])), tensor[rows]),))


def in_columns(tensor: Tensor, rank: int) -> Pieces:
    """Two columns each."""
    return Pieces(tuple(tensor.shape), (Piece((0, 2 * rank), tensor[:, 2 * rank : 2 * rank + 2]),))


def write(
    folder: Path, pieces_for: Callable[[int], dict[str, Pieces]], name: str = "last", told: Any = None
) -> list[Any]:
    """A checkpoint of three processes; returns what each wrote."""
    told = {} if told is None else told
    writers = told.setdefault("writers", {r: Writer(FakeBackend(r, told)) for r in range(WORLD)})  # type: ignore[arg-type]
    snapshots = {}
    for rank in (2, 1, 0):
        snapshots[rank] = writers[rank].snapshot(pieces_for(rank))
        write_part(folder, snapshots[rank])
    wait_for_parts(folder, snapshots[0])
    checkpoint.save(folder / f"{name}.safetensors", snapshots[0].main, {PARTS: snapshots[0].listing})
    remove_unused(folder, snapshots[0])
    return [snapshots[r] for r in range(WORLD)]


@pytest.fixture
def saved(tmp_path: Path) -> Stored:
    """A table in rows, one in columns, one that the last process holds, and one that all hold alike."""

    def pieces(rank: int) -> dict[str, Pieces]:
        alone = Pieces((4,), (Piece((0,), torch.arange(4.0)),) if rank == 2 else ())
        return {
            "rows": in_rows(WHOLE, rank),
            "columns": in_columns(WHOLE, rank),
            "alone": alone,
            "alike": pieces_of(torch.tensor(7), first=rank == 0),
        }

    write(tmp_path, pieces)
    return checkpoint.load(tmp_path / "last.safetensors")[0]


def test_whole_tensors_come_back(saved: Stored) -> None:
    assert sorted(saved) == ["alike", "alone", "columns", "rows"] and len(saved) == 4
    assert torch.equal(saved["rows"], WHOLE) and torch.equal(saved["columns"], WHOLE)
    assert torch.equal(saved["alone"], torch.arange(4.0)) and saved["alike"] == 7 and saved["alike"].dim() == 0
    assert len(saved.files) == 3


@pytest.mark.parametrize("stored", ["rows", "columns"])
@pytest.mark.parametrize("layout", [in_rows, in_columns])
def test_any_layout_becomes_any_other(saved: Stored, stored: str, layout: Callable[[Tensor, int], Pieces]) -> None:
    target = torch.full_like(WHOLE, torch.nan)
    for rank in range(WORLD):
        fill(layout(target, rank), saved, stored)
    assert torch.equal(target, WHOLE)


def test_statistics_of_rows_are_joined_and_parted(tmp_path: Path) -> None:
    parted = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]])
    checkpoint.save(tmp_path / "a.safetensors", {"parted": parted, "joined": parted.mean(1)}, {})
    stored = checkpoint.load(tmp_path / "a.safetensors")[0]
    joined, again, spread, fewer = torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2)
    fill(pieces_of(joined), stored, "parted")
    assert torch.equal(joined, parted.mean(1))
    fill(pieces_of(again), stored, "parted")
    assert torch.equal(again, parted)
    fill(pieces_of(spread), stored, "joined")
    assert torch.equal(spread, parted.mean(1, keepdim=True).expand(2, 3))
    fill(pieces_of(fewer), stored, "parted")
    assert torch.equal(fewer, parted.mean(1, keepdim=True).expand(2, 2))


def test_replicas_divide_the_writing() -> None:
    def pieces(replica: int) -> dict[str, Pieces]:
        tensors = {f"layer{i}": Pieces((7 + i % 3, 5), (), replica=replica, replicas=3) for i in range(30)}
        return tensors | {"alike": Pieces((9,), (), saved_here=replica == 2)}

    written = [written_here(pieces(replica)) for replica in range(3)]
    assert sorted(name for names in written for name in names) == sorted(pieces(0))
    assert "alike" in written[2]
    loads = [sum(math.prod(pieces(0)[name].shape) for name in names - {"alike"}) for names in written]
    assert max(loads) - min(loads) <= 45


def test_a_hole_is_an_error(tmp_path: Path) -> None:
    def pieces(rank: int) -> dict[str, Pieces]:
        return {"x": in_rows(WHOLE, rank)._replace(saved_here=rank != 1)}

    write(tmp_path, pieces)
    stored = checkpoint.load(tmp_path / "last.safetensors")[0]
    assert torch.equal(stored.block("x", (8, 0), (2, 6)), WHOLE[8:])
    with pytest.raises(GemkitError, match="24 of its numbers are missing"):
        stored["x"]


def test_parts_go_when_no_checkpoint_names_them(tmp_path: Path) -> None:
    told: dict[Any, Any] = {}

    def pieces(rank: int) -> dict[str, Pieces]:
        return {"x": in_rows(WHOLE, rank)}

    write(tmp_path, pieces, "best", told)
    write(tmp_path, pieces, "last", told)
    (tmp_path / PARTS / "0ther-000009-1of3.safetensors").write_bytes(b"left by processes that were killed")
    (tmp_path / PARTS / "5e551011-000099-1of3.safetensors").write_bytes(b"being written for a later checkpoint")
    write(tmp_path, pieces, "last", told)
    names = sorted(p.name for p in (tmp_path / PARTS).iterdir())
    kept = [f"5e551011-{n:06d}-{r}of3.safetensors" for n in (1, 3) for r in (1, 2, 3)]
    assert names == [*kept, "5e551011-000099-1of3.safetensors"]
    for name in ("best", "last"):
        assert torch.equal(checkpoint.load(tmp_path / f"{name}.safetensors")[0]["x"], WHOLE)


def test_a_part_that_never_comes_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[Any, Any] = {}
    writers = [Writer(FakeBackend(r, told)) for r in range(WORLD)]  # type: ignore[arg-type]
    snapshots = [writers[r].snapshot({"x": in_rows(WHOLE, r)}) for r in (2, 1, 0)]
    monkeypatch.setattr("gemkit.runs.parts.PATIENCE_S", 0.1)
    with pytest.raises(GemkitError, match=r"of3\.safetensors"):
        wait_for_parts(tmp_path, snapshots[-1])


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    told: dict[Any, Any] = {}
    saver = Saver(FakeBackend(0, told, world_size=1), asynchronous=True)  # type: ignore[arg-type]
    weights, may_write = torch.zeros(3), threading.Event()

    def publish(main: dict[str, Tensor], parts: dict[str, Any]) -> None:
        assert may_write.wait(10)
        checkpoint.save(tmp_path / "last.safetensors", main, parts)

    saver.save(tmp_path, {"w": pieces_of(weights)}, publish)
    weights += 1  # the next step
    assert not (tmp_path / "last.safetensors").exists()
    may_write.set()
    saver.wait()
    assert torch.equal(checkpoint.load(tmp_path / "last.safetensors")[0]["w"], torch.zeros(3))


def test_what_went_wrong_in_the_background_comes_up(tmp_path: Path) -> None:
    told: dict[Any, Any] = {}
    saver = Saver(FakeBackend(0, told, world_size=1), asynchronous=True)  # type: ignore[arg-type]

    def publish(main: dict[str, Tensor], parts: dict[str, Any]) -> None:
        checkpoint.save(tmp_path / "missing" / "last.safetensors", main, parts)

    saver.save(tmp_path, {"w": pieces_of(torch.zeros(3))}, publish)
    time.sleep(0.01)
    with pytest.raises(GemkitError, match="cannot write"):
        saver.wait()


def test_overlap_of_blocks() -> None:
    assert overlap((0, 0), (2, 2), (2, 0), (1, 1)) is None
    assert overlap((1, 0), (4, 6), (3, 2), (9, 2)) == (
        (slice(2, 4), slice(2, 4)),
        (slice(0, 2), slice(0, 2)),
    )
    assert overlap((), (), (), ()) == ((), ())
