"""`jagged_attention` in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.jagged_attention import bench, jagged_attention
from gemkit_kernels.lengths import ODD


@pytest.mark.parametrize("options", bench.VARIANTS, ids=str)
@pytest.mark.parametrize(("heads", "width"), [(2, 10), (1, 64)])
def test_outputs_and_gradients(heads: int, width: int, options: dict[str, Any]) -> None:
    found = bench.errors_of(torch.tensor(ODD), heads, width, torch.float32, options, "cpu", seed=width)
    assert len(found) == 2 and max(found.values()) < LIMITS[torch.float32], found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [10.0, 20.0, 20.0, 20.0]),
        ({"causal": True}, [10.0, 10.0, 15.0, 20.0]),
        ({"window": 2}, [10.0, 10.0, 15.0, 25.0]),
        ({"window": 2, "both_sides": True}, [10.0, 15.0, 20.0, 25.0]),
        ({"window": 1, "num_global": 1}, [10.0, 20.0, 25.0, 20.0]),
    ],
    ids=str,
)
def test_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    """Histories of one and three rows with equal scores: each row is the mean of those that it sees."""
    qkv = torch.tensor([[0.0, 0.0, 10.0], [0.0, 9.0, 10.0], [0.0, 5.0, 20.0], [0.0, 7.0, 30.0]])
    rows = jagged_attention(qkv, torch.tensor([0, 1, 1, 4]), 3, 1, rotary=False, **options)
    torch.testing.assert_close(rows, torch.tensor(expected).unsqueeze(1))


def test_scores_by_hand() -> None:
    """Scores log 3 apart in the second row, whose key the rotary positions turn by one radian."""
    turn = torch.tensor(1.0)
    q = torch.tensor([[0.0, 0.0], [turn.cos(), -turn.sin()]])  # turned by +1: (1, 0)
    k = torch.tensor([[2**0.5 * torch.log(torch.tensor(3.0)), 5.0], [0.0, 0.0]])
    v = torch.tensor([[4.0, 8.0], [0.0, 4.0]])
    rows = jagged_attention(torch.cat([q, k, v], 1), torch.tensor([0, 2]), 2, 1)
    torch.testing.assert_close(rows, torch.tensor([[2.0, 6.0], [3.0, 7.0]]))


@pytest.mark.parametrize("options", bench.VARIANTS, ids=str)
def test_a_history_never_reaches_another(options: dict[str, Any]) -> None:
    clean = torch.randn(150, 3 * 8)
    poisoned = torch.cat([clean[:50], torch.full((99, 24), torch.nan), clean[149:]])
    offsets = torch.tensor([0, 50, 149, 150])
    rows, gradients = [], []
    for qkv in (clean, poisoned):
        qkv.requires_grad_()
        rows.append(jagged_attention(qkv, offsets, 99, 2, **options))
        gradients.append(torch.autograd.grad(rows[-1].square().sum(), qkv)[0])
    for a, b in (rows, gradients):
        assert torch.equal(a[:50], b[:50]) and torch.equal(a[149:], b[149:])
    assert rows[1][50:149].isnan().all()


@pytest.mark.parametrize("options", [{}, {"causal": True, "num_global": 2}, {"window": 7}], ids=str)
def test_compiles_whole(options: dict[str, Any]) -> None:
    x = bench.example(torch.tensor([3, 0, 40, 1]), 2, 8, torch.float32, "cpu", seed=1)

    def call(qkv: torch.Tensor, offsets: torch.Tensor) -> Any:
        return jagged_attention(qkv, offsets, 40, 2, **options)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x["qkv"], x["offsets"]), call(x["qkv"], x["offsets"])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x["qkv"]) for out in (found, expected)))
    assert paths.taken()["jagged_attention"] == paths.PYTORCH


def test_no_history_and_no_event() -> None:
    for offsets in ([0], [0, 0, 0]):
        qkv = torch.randn(0, 3 * 32, requires_grad=True)
        rows = jagged_attention(qkv, torch.tensor(offsets), 0, 2)
        rows.sum().backward()
        assert rows.shape == (0, 32) and qkv.grad is not None


def test_autocast_lowers_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert jagged_attention(torch.randn(4, 24), torch.tensor([0, 4]), 4, 2).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(4, 20)}, "does not divide 20"),
        ({"qkv": torch.zeros(4, 24, dtype=torch.int32)}, "int32"),
        ({"offsets": torch.zeros(2)}, "offsets has shape"),
        ({"longest": -1}, "longest = -1"),
        ({"window": -1}, "window = -1"),
        ({"num_global": -1}, "num_global = -1"),
        ({"num_heads": 3}, "num_heads = 3 does not divide 8"),
        ({"qkv": torch.zeros(4, 6), "num_heads": 2}, "even width"),
        ({"both_sides": True}, "needs a window"),
        ({"both_sides": True, "window": 2, "causal": True}, "no causal"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    arguments = {"qkv": torch.zeros(4, 24), "offsets": torch.tensor([0, 4]), "longest": 4, "num_heads": 2, **change}
    with pytest.raises(ValueError, match=words):
        jagged_attention(**arguments)
