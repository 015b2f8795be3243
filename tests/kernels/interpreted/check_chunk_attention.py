"""`chunk_attention`'s kernels against its definition."""

from __future__ import annotations

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.chunk_attention import bench
from gemkit_kernels.chunk_attention.op import _operator, chunk_attention
from gemkit_kernels.compare import LIMITS


@pytest.mark.parametrize(
    ("size", "heads", "width", "dtype", "full"),
    [
        (32, 2, 16, torch.float32, False),
        (128, 1, 32, torch.float32, False),
        (33, 1, 24, torch.float32, True),
        (64, 2, 32, torch.float16, True),
        pytest.param(32, 2, 16, torch.float32, True, marks=pytest.mark.slow),
        pytest.param(64, 1, 64, torch.float32, False, marks=pytest.mark.slow),
        pytest.param(64, 1, 64, torch.float32, True, marks=pytest.mark.slow),
        pytest.param(128, 1, 32, torch.float32, True, marks=pytest.mark.slow),
        pytest.param(33, 1, 24, torch.float32, False, marks=pytest.mark.slow),
        pytest.param(64, 2, 32, torch.float16, False, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients(size: int, heads: int, width: int, dtype: torch.dtype, full: bool) -> None:
    seed = int(torch.randint(2**31, ()))
    found = bench.errors_of(size, heads, width, dtype, full, "cpu", seed)
    # The gradient of a slope is a sum over all pairs of rows, of which most cancels.
    found["gradient of age_slopes"] = found.get("gradient of age_slopes", 0.0) / 10
    assert max(found.values()) < LIMITS[dtype], (found, seed)


@pytest.mark.parametrize("full", [False, True], ids=["plain", "all options"])
def test_operator(full: bool) -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 16, 2, 8, torch.float32, full, "cpu", seed=1)
    rest = [x.get(name) for name in bench.OPTIONS]
    torch.library.opcheck(_operator, (x["qkv"], x["starts"], 16, 2, True, *rest))


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 16, 2, 8, torch.float32, False, "cpu", seed=1)

    def call(qkv: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        return chunk_attention(qkv, starts, 16, 2)[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x["qkv"], x["starts"]), call(x["qkv"], x["starts"])
    torch.testing.assert_close(found, expected)
    again = torch.autograd.grad(found.sum(), x["qkv"]), torch.autograd.grad(expected.sum(), x["qkv"])
    torch.testing.assert_close(*again)
    assert paths.taken()["chunk_attention"] == paths.TRITON


def test_no_history_and_no_event() -> None:
    for starts in ([0], [0, 0, 0]):
        qkv = torch.randn(0, 3 * 32, requires_grad=True)
        query = torch.randn(2, 32, requires_grad=True)
        rows, summaries = chunk_attention(qkv, torch.tensor(starts), 64, 2, summary_queries=query)
        assert rows.shape == (0, 32) and torch.equal(summaries, torch.zeros(len(starts) - 1, 2, 32))
        (rows.sum() + summaries.sum()).backward()
        assert qkv.grad is not None and torch.equal(query.grad, torch.zeros(2, 32))


def test_a_chunk_never_sees_another() -> None:
    qkv = torch.randn(50, 3 * 32)
    starts = torch.tensor([0, 20, 50])
    clean, _ = chunk_attention(qkv, starts, 32, 2)
    qkv[20:] = torch.nan
    poisoned, _ = chunk_attention(qkv, starts, 32, 2)
    assert torch.equal(poisoned[:20], clean[:20]) and poisoned[20:].isnan().all()
