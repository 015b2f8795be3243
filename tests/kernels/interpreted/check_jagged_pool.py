"""`jagged_pool`'s kernels against its definition."""

from __future__ import annotations

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.jagged_pool import bench
from gemkit_kernels.jagged_pool.op import _backward_operator, _operator, jagged_pool

LONG = (3, 1100, 0, 512, 513)
"""Around the borders of splits: of one split, of two and of three."""
CHUNKS = (16, 16, 5, 16, 0, 16, 1)


@pytest.mark.parametrize(
    ("queries", "heads", "width", "dtype", "form", "lengths"),
    [
        (4, 2, 16, torch.float32, "shared", bench.ODD),
        (1, 1, 64, torch.float32, "own", bench.ODD),
        (2, 2, 32, torch.float16, "shared, values are keys", CHUNKS),
        (17, 3, 24, torch.float32, "own, values are keys", (0, 1, 65, 0)),
        (33, 1, 128, torch.float32, "own", (70, 1)),
        (4, 1, 16, torch.float32, "shared", LONG),
        (3, 2, 16, torch.float32, "own", LONG),
        (5, 1, 16, torch.float16, "own, values are keys", LONG),
    ],
)
def test_output_and_gradients(
    queries: int, heads: int, width: int, dtype: torch.dtype, form: str, lengths: tuple[int, ...]
) -> None:
    seed = int(torch.randint(2**31, ()))
    found = bench.errors_of(queries, heads, width, dtype, form, "cpu", seed, lengths)
    assert len(found) == 3 and max(found.values()) < LIMITS[dtype], (found, seed)


@pytest.mark.parametrize("form", ["own", "shared, values are keys"])
def test_operators(form: str) -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 3, 2, 8, torch.float32, form, "cpu", seed=1)
    arguments = (*bench.tensors(x), 2, 0.5)
    torch.library.opcheck(_operator, arguments)
    rest = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    out, log_sums = _operator(*rest)
    torch.library.opcheck(_backward_operator, (torch.randn_like(out), out, log_sums, *rest))


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 3, 2, 8, torch.float32, "own", "cpu", seed=1)

    def call(queries: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return jagged_pool(queries, rows[:, :16], rows[:, 16:], offsets, 2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*x.values()), call(*x.values())
    torch.testing.assert_close(found, expected)
    again = [torch.autograd.grad(out.square().sum(), (x["queries"], x["rows"])) for out in (found, expected)]
    torch.testing.assert_close(*again)
    assert paths.taken()["jagged_pool"] == paths.TRITON


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
@pytest.mark.parametrize("own", [False, True])
def test_no_history_and_no_event(offsets: list[int], own: bool) -> None:
    count = len(offsets) - 1
    q = torch.randn(count, 4, 32, requires_grad=True) if own else torch.randn(4, 32, requires_grad=True)
    k = torch.randn(0, 32, requires_grad=True)
    out = jagged_pool(q, k, None, torch.tensor(offsets), 2)
    assert torch.equal(out, torch.zeros(count, 4, 32))
    out.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q)) and k.grad.shape == (0, 32)


def test_a_history_never_sees_another() -> None:
    x = bench.example(torch.tensor([20, 30, 0, 5]), 2, 2, 16, torch.float32, "own", "cpu", seed=1)

    def run() -> list[torch.Tensor]:
        out = jagged_pool(*bench.tensors(x), 2)
        return [out, *torch.autograd.grad(out.square().sum(), (x["queries"], x["rows"]))]

    clean = run()
    with torch.no_grad():
        x["rows"][20:50] = torch.nan
    poisoned = run()
    for before, after in zip(clean[:2], poisoned[:2], strict=True):
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]]) and after[1].isnan().all()
    assert torch.equal(poisoned[2][:20], clean[2][:20]) and torch.equal(poisoned[2][50:], clean[2][50:])
    assert poisoned[2][20:50].isnan().all()


def test_large_scores() -> None:
    """Peaks are taken off before they are raised, also across splits."""
    keys = torch.zeros(1200, 16)
    keys[700, 0] = 1e4
    values = torch.arange(1200.0).unsqueeze(1).expand(-1, 16).contiguous()
    query = torch.zeros(1, 16)
    query[0, 0] = 1.0
    out = jagged_pool(query, keys, values, torch.tensor([0, 1200]), 1)
    torch.testing.assert_close(out, torch.full((1, 1, 16), 700.0))
