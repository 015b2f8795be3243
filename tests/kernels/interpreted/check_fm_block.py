"""`fm_block`'s kernels against its definition."""

from __future__ import annotations

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.fm_block import bench
from gemkit_kernels.fm_block.op import _operator, fm_block
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize("attentive", [False, True], ids=["static", "attentive"])
@pytest.mark.parametrize(
    ("batch", "n", "d", "k", "dtype"),
    [
        (7, 32, 32, 16, torch.float32),
        (1, 31, 16, 8, torch.float32),
        (5, 33, 100, 24, torch.float32),
        (3, 1, 31, 3, torch.float32),
        (2, 3, 1, 32, torch.float32),
        (7, 64, 130, 24, torch.float16),
        (4, 130, 40, 17, torch.float16),  # sums its bias outside of the kernel
        (4, 200, 33, 9, torch.float16),
    ],
)
def test_outputs_and_gradients(batch: int, n: int, d: int, k: int, dtype: torch.dtype, attentive: bool) -> None:
    seed = int(torch.randint(2**31, ()))
    found = bench.errors_of(batch, n, d, k, dtype, attentive, "cpu", seed)
    assert len(found) == 5 and max(found.values()) < LIMITS[dtype], (found, seed)


@pytest.mark.parametrize("attentive", [False, True], ids=["static", "attentive"])
def test_operator(attentive: bool) -> None:
    x = bench.example(3, 5, 8, 3, torch.float32, attentive, "cpu", seed=1)
    torch.library.opcheck(_operator, tuple(x.values()))


def test_compiles_whole() -> None:
    x = bench.example(3, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    found, expected = torch.compile(fm_block, fullgraph=True, backend="aot_eager")(**x), fm_block(**x)
    torch.testing.assert_close(found, expected)
    leaves = list(x.values())
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))
    assert paths.taken()["fm_block"] == paths.TRITON


def test_no_example() -> None:
    for attentive in (False, True):
        x = bench.example(0, 5, 8, 3, torch.float32, attentive, "cpu", seed=1)
        out = fm_block(**x)
        assert out.shape == (0, 15)
        out.sum().backward()
        for tensor in x.values():
            assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_strided_inputs() -> None:
    x = bench.example(3, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    expected = fm_block(**x)
    turned = x["x"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    found = fm_block(turned, x["y"], x["gain"], x["bias"])
    assert torch.equal(found, expected)
    dout = torch.randn(15, 3).t()
    a, b = torch.autograd.grad(found, turned, dout), torch.autograd.grad(expected, x["x"], dout)
    assert torch.equal(a[0], b[0])


def test_an_example_never_sees_another() -> None:
    x = bench.example(5, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    rows = x["x"].detach().clone()
    clean = fm_block(rows, x["y"], x["gain"], x["bias"])
    rows[3] = torch.nan
    poisoned = fm_block(rows, x["y"], x["gain"], x["bias"])
    assert torch.equal(poisoned[[0, 1, 2, 4]], clean[[0, 1, 2, 4]]) and poisoned[3].isnan().all()


def test_autocast_decides_the_type() -> None:
    """float16 here: the interpreter gets bf16 wrong."""
    x = bench.example(3, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    with torch.autocast("cpu", torch.float16):
        out = fm_block(**x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), fm_block(**x), atol=2e-2, rtol=1e-2)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), x["x"])
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_operations_are_counted() -> None:
    x = bench.example(3, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    with FlopCounterMode(display=False) as counter:
        fm_block(**x).sum().backward()
    assert counter.get_total_flops() == (4 + 12) * 3 * 5 * 8 * 3
