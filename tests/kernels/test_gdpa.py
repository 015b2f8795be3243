"""`gdpa` in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.gdpa import bench, gdpa
from torch.nn import functional as F


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize(("keys", "heads", "width"), [(4, 2, 16), (16, 1, 64), (150, 3, 10), (1, 1, 1)])
def test_output_and_gradients(keys: int, heads: int, width: int, activation: str) -> None:
    found = bench.errors_of(keys, heads, width, torch.float32, activation, "cpu", seed=keys)
    assert len(found) == 4 and max(found.values()) < LIMITS[torch.float32], found


def test_by_hand() -> None:
    """Two events of the first history, one of the third; the second has none. Keys pick a value of the query."""
    queries = torch.tensor([[1.0, -1.0], [3.0, 0.0], [2.0, 5.0]])
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[9.0, 9.0], [9.0, 9.0]], [[0.0, 0.0], [1.0, 0.0]]])
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]], [[7.0, 7.0], [1.0, -1.0]]])
    out = gdpa(queries, keys, values, torch.tensor([0, 2, 2, 3]), 1, scale=0.5)
    scores = torch.tensor([[0.5, -1.0], [1.5, 0.0], [1.0, -1.0]])
    expected = F.gelu(scores)
    expected[2] = F.gelu(torch.tensor(1.0)) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("nan_first", [False, True])
def test_a_history_never_sees_another(nan_first: bool) -> None:
    x = bench.example(torch.tensor([0, 20, 0, 30, 0]), 4, 2, 8, torch.float32, "cpu", seed=1)
    tensors = list(x.values())
    bad, good, u, w = (slice(0, 20), slice(20, 50), 1, 3) if nan_first else (slice(20, 50), slice(0, 20), 3, 1)

    def run() -> list[torch.Tensor]:
        out = gdpa(*tensors, 2, scale=0.5)
        return [out, *torch.autograd.grad(out.square().sum(), tensors[:3])]

    clean = run()
    with torch.no_grad():
        tensors[0][bad] = torch.nan
    poisoned = run()
    assert poisoned[0][bad].isnan().all() and poisoned[2][u].isnan().all()
    for before, after in zip(clean[:2], poisoned[:2], strict=True):
        torch.testing.assert_close(after[good], before[good])
    for before, after in zip(clean[2:], poisoned[2:], strict=True):
        torch.testing.assert_close(after[w], before[w])
        assert torch.equal(after[[0, 2, 4]], torch.zeros_like(after[[0, 2, 4]]))


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 40, 1]), 4, 2, 8, torch.float32, "cpu", seed=1)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return gdpa(*tensors, 2, scale=0.5)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x.values()), call(*x.values()))
    assert paths.taken()["gdpa"] == paths.PYTORCH


def test_no_event_and_no_history() -> None:
    for offsets in ([0], [0, 0, 0]):
        q, k = torch.zeros(0, 8, requires_grad=True), torch.ones(len(offsets) - 1, 2, 8)
        out = gdpa(q, k, k, torch.tensor(offsets), 2, scale=1.0)
        assert out.shape == (0, 8)
        out.sum().backward()
        assert q.grad is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queries": torch.zeros(4, 2, 4)}, r"queries has shape \(4, 2, 4\)"),
        ({"queries": torch.zeros(4, 8, dtype=torch.int32)}, "int32"),
        ({"keys": torch.zeros(2, 3, 8)}, r"keys has shape \(2, 3, 8\), expected \(1, any, 8\)"),
        ({"values": torch.zeros(1, 2, 8)}, r"values has shape \(1, 2, 8\), expected \(1, 3, 8\)"),
        ({"keys": torch.zeros(1, 3, 8).double()}, "float64"),
        ({"offsets": torch.zeros(2)}, "offsets has shape"),
        ({"num_heads": 3}, "num_heads = 3 does not divide 8"),
        ({"activation": "relu"}, "activation = relu, expected gelu or silu"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    tensors = {"queries": torch.zeros(4, 8), "keys": torch.zeros(1, 3, 8), "values": torch.zeros(1, 3, 8)}
    arguments = {**tensors, "offsets": torch.tensor([0, 4]), "num_heads": 2, "scale": 1.0, **change}
    with pytest.raises(ValueError, match=words):
        gdpa(**arguments)
