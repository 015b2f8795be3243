"""`gdpa`'s kernels against its definition."""

from __future__ import annotations

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.gdpa import bench
from gemkit_kernels.gdpa.op import _backward_operator, _operator, gdpa

LONG = (3, 1100, 0, 512, 513)
"""Around the borders of splits: of one split, of two and of three."""


@pytest.mark.parametrize(
    ("keys", "heads", "width", "dtype", "activation", "lengths"),
    [
        (4, 2, 16, torch.float32, "gelu", bench.ODD),
        (16, 1, 64, torch.float32, "silu", bench.ODD),
        (33, 3, 24, torch.float32, "gelu", (0, 1, 65, 0)),
        (128, 1, 128, torch.float32, "gelu", (70, 1)),
        (2, 2, 32, torch.float16, "gelu", bench.ODD),
        (3, 1, 16, torch.float32, "gelu", LONG),
        (5, 2, 16, torch.float16, "silu", LONG),
    ],
)
def test_output_and_gradients(
    keys: int, heads: int, width: int, dtype: torch.dtype, activation: str, lengths: tuple[int, ...]
) -> None:
    seed = int(torch.randint(2**31, ()))
    found = bench.errors_of(keys, heads, width, dtype, activation, "cpu", seed, lengths)
    assert len(found) == 4 and max(found.values()) < LIMITS[dtype], (found, seed)


def test_operators() -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 4, 2, 8, torch.float32, "cpu", seed=1)
    torch.library.opcheck(_operator, (*x.values(), 2, 0.5, "gelu"))
    rest = [tensor.detach() for tensor in x.values()]
    torch.library.opcheck(_backward_operator, (torch.randn_like(rest[0]), *rest, 2, 0.5, "silu"))


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 4, 2, 8, torch.float32, "cpu", seed=1)
    tensors = list(x.values())

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        return gdpa(*arguments, 2, scale=0.5)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*tensors), call(*tensors)
    torch.testing.assert_close(found, expected)
    again = [torch.autograd.grad(out.square().sum(), tensors[:3]) for out in (found, expected)]
    torch.testing.assert_close(*again)
    assert paths.taken()["gdpa"] == paths.TRITON


def test_no_history_and_no_event() -> None:
    for offsets in ([0], [0, 0, 0]):
        q = torch.randn(0, 32, requires_grad=True)
        k, v = (torch.randn(len(offsets) - 1, 4, 32, requires_grad=True) for _ in range(2))
        out = gdpa(q, k, v, torch.tensor(offsets), 2, scale=1.0)
        assert out.shape == (0, 32)
        out.sum().backward()
        assert torch.equal(k.grad, torch.zeros_like(k)) and torch.equal(v.grad, torch.zeros_like(v))


def test_queries_may_be_a_view() -> None:
    wide = torch.randn(40, 3 * 32, requires_grad=True)
    k, v = torch.randn(2, 2, 4, 32)
    offsets = torch.tensor([0, 17, 40])
    outs = [gdpa(q, k, v, offsets, 2, scale=0.3) for q in (wide[:, 32:64], wide[:, 32:64].contiguous())]
    assert torch.equal(*outs)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), wide)[0] for out in outs))


def test_a_history_never_sees_another() -> None:
    x = bench.example(torch.tensor([20, 30, 0, 5]), 4, 2, 16, torch.float32, "cpu", seed=1)
    tensors = list(x.values())

    def run() -> list[torch.Tensor]:
        out = gdpa(*tensors, 2, scale=0.5)
        return [out, *torch.autograd.grad(out.square().sum(), tensors[:3])]

    clean = run()
    with torch.no_grad():
        tensors[0][20:50] = torch.nan
        tensors[1][1] = tensors[2][1] = torch.nan
    poisoned = run()
    for before, after in zip(clean[:2], poisoned[:2], strict=True):
        assert torch.equal(after[:20], before[:20]) and torch.equal(after[50:], before[50:])
        assert after[20:50].isnan().all()
    for before, after in zip(clean[2:], poisoned[2:], strict=True):
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]]) and after[1].isnan().all()
