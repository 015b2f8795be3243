"""`jagged_pool` in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.jagged_pool import bench, jagged_pool


@pytest.mark.parametrize("form", bench.FORMS)
@pytest.mark.parametrize(("queries", "heads", "width"), [(4, 2, 16), (1, 1, 64), (70, 3, 10), (2, 1, 1)])
def test_output_and_gradients(queries: int, heads: int, width: int, form: str) -> None:
    found = bench.errors_of(queries, heads, width, torch.float32, form, "cpu", seed=queries)
    assert len(found) == 3 and max(found.values()) < LIMITS[torch.float32], found


def test_by_hand() -> None:
    """The first history has two rows whose scores are log 3 apart, the second none, the third one."""
    step = torch.log(torch.tensor(3.0))
    keys = torch.tensor([[step, 5.0], [0.0, -7.0], [2.0, 2.0]])
    values = torch.tensor([[4.0, 8.0], [0.0, 4.0], [1.0, 3.0]])
    out = jagged_pool(torch.tensor([[1.0, 0.0]]), keys, values, torch.tensor([0, 2, 2, 3]), 1, scale=1.0)
    torch.testing.assert_close(out, torch.tensor([[[3.0, 7.0]], [[0.0, 0.0]], [[1.0, 3.0]]]))


def test_large_scores() -> None:
    """Peaks are taken off before they are raised, also where a chunk's is far below its history's."""
    keys = torch.zeros(100, 2)
    keys[70, 0], keys[40, 0] = 1e4, -1e4
    values = torch.arange(100.0).unsqueeze(1).expand(-1, 2)
    out = jagged_pool(torch.tensor([[1.0, 0.0]]), keys, values, torch.tensor([0, 100]), 1)
    torch.testing.assert_close(out, torch.full((1, 1, 2), 70.0))


@pytest.mark.parametrize("nan_first", [False, True])
@pytest.mark.parametrize("form", ["own", "own, values are keys"])
def test_a_history_never_sees_another(form: str, nan_first: bool) -> None:
    x = bench.example(torch.tensor([0, 20, 0, 30, 0]), 2, 2, 8, torch.float32, form, "cpu", seed=1)
    bad, good, u, w = (slice(0, 20), slice(20, 50), 1, 3) if nan_first else (slice(20, 50), slice(0, 20), 3, 1)

    def run() -> list[torch.Tensor]:
        out = jagged_pool(*bench.tensors(x), 2)
        return [out, *torch.autograd.grad(out.square().sum(), (x["queries"], x["rows"]))]

    clean = run()
    with torch.no_grad():
        x["rows"][bad] = torch.nan
    poisoned = run()
    assert poisoned[0][u].isnan().all() and poisoned[2][bad].isnan().all()
    for before, after in zip(clean[:2], poisoned[:2], strict=True):
        torch.testing.assert_close(after[w], before[w])
        assert torch.equal(after[[0, 2, 4]], torch.zeros_like(after[[0, 2, 4]]))
    torch.testing.assert_close(poisoned[2][good], clean[2][good])


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 40, 1]), 2, 2, 8, torch.float32, "shared", "cpu", seed=1)

    def call(queries: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return jagged_pool(queries, rows[:, :16], rows[:, 16:], offsets, 2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x.values()), call(*x.values()))
    assert paths.taken()["jagged_pool"] == paths.PYTORCH


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
@pytest.mark.parametrize("own", [False, True])
def test_no_event_and_no_history(offsets: list[int], own: bool) -> None:
    count = len(offsets) - 1
    q = torch.randn(count, 4, 8, requires_grad=True) if own else torch.randn(4, 8, requires_grad=True)
    k = torch.randn(0, 8, requires_grad=True)
    out = jagged_pool(q, k, k * 2, torch.tensor(offsets), 2)
    assert torch.equal(out, torch.zeros(count, 4, 8))
    out.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q)) and k.grad.shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": torch.zeros(4, 2, 4)}, r"keys has shape \(4, 2, 4\)"),
        ({"keys": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
        ({"queries": torch.zeros(3, 4)}, r"queries has shape \(3, 4\), expected \(any, 8\)"),
        ({"queries": torch.zeros(2, 3, 8)}, r"queries has shape \(2, 3, 8\), expected \(1, any, 8\)"),
        ({"queries": torch.zeros(3, 8).double()}, "queries are torch.float64, keys torch.float32"),
        ({"values": torch.zeros(5, 8)}, r"values has shape \(5, 8\), expected \(4, 8\)"),
        ({"values": torch.zeros(4, 8).half()}, "values are torch.float16"),
        ({"offsets": torch.zeros(2)}, "offsets has shape"),
        ({"num_heads": 3}, "num_heads = 3 does not divide 8"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    tensors = {"queries": torch.zeros(3, 8), "keys": torch.zeros(4, 8), "values": torch.zeros(4, 8)}
    arguments = {**tensors, "offsets": torch.tensor([0, 4]), "num_heads": 2, **change}
    with pytest.raises(ValueError, match=words):
        jagged_pool(**arguments)
