"""`jagged_attention`'s kernels against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.jagged_attention import bench
from gemkit_kernels.jagged_attention.op import _operator, jagged_attention
from gemkit_kernels.lengths import offsets_of
from torch.utils.flop_counter import FlopCounterMode

LENGTHS = (0, 1, 31, 32, 33, 0, 100, 3, 0)
"""Around the tiles of fp32, which have 32 rows."""


OFTEN: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True, "num_global": 3},
    {"window": 7, "both_sides": True},
    {"causal": True, "rotary": False},
)
"""Of the ways through the kernels, those that `make test` goes, with `test_half_precision`."""


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=str(o), marks=[] if o in OFTEN else pytest.mark.slow) for o in bench.VARIANTS],
)
def test_outputs_and_gradients(options: dict[str, Any]) -> None:
    found = bench.errors_of(torch.tensor(LENGTHS), 1, 16, torch.float32, options, "cpu", seed=1)
    assert len(found) == 2 and max(found.values()) < LIMITS[torch.float32], found


@pytest.mark.parametrize(
    ("heads", "width", "options"),
    [
        (2, 24, {"causal": True, "num_global": 2}),
        (1, 32, {"window": 40, "both_sides": True}),
        (1, 128, {"window": 150}),
    ],
)
def test_half_precision(heads: int, width: int, options: dict[str, Any]) -> None:
    lengths = torch.tensor([0, 129, 1, 200])
    found = bench.errors_of(lengths, heads, width, torch.float16, options, "cpu", seed=width)
    assert max(found.values()) < LIMITS[torch.float16], found


@pytest.mark.parametrize("options", [(False, 0, False, 0, True), (True, 0, False, 2, True), (False, 4, True, 0, False)])
def test_operator(options: tuple[Any, ...]) -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 2, 8, torch.float32, "cpu", seed=1)
    torch.library.opcheck(_operator, (x["qkv"], x["offsets"], 20, 2, *options))


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 20, 1]), 2, 8, torch.float32, "cpu", seed=1)

    def call(qkv: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return jagged_attention(qkv, offsets, 20, 2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x["qkv"], x["offsets"]), call(x["qkv"], x["offsets"])
    torch.testing.assert_close(found, expected)
    again = torch.autograd.grad(found.sum(), x["qkv"]), torch.autograd.grad(expected.sum(), x["qkv"])
    torch.testing.assert_close(*again)
    assert paths.taken()["jagged_attention"] == paths.TRITON


def test_no_history_and_no_event() -> None:
    for offsets in ([0], [0, 0, 0]):
        qkv = torch.randn(0, 3 * 32, requires_grad=True)
        rows = jagged_attention(qkv, torch.tensor(offsets), 0, 2)
        assert rows.shape == (0, 32)
        rows.sum().backward()
        assert qkv.grad is not None


@pytest.mark.parametrize("options", [{}, {"causal": True, "num_global": 1}, {"window": 9}], ids=str)
def test_a_history_never_reaches_another(options: dict[str, Any]) -> None:
    clean = torch.randn(61, 3 * 16)
    poisoned = torch.cat([clean[:20], torch.full((40, 48), torch.nan), clean[60:]])
    offsets = torch.tensor([0, 20, 60, 61])
    rows, gradients = [], []
    for qkv in (clean, poisoned):
        qkv.requires_grad_()
        rows.append(jagged_attention(qkv, offsets, 40, 1, **options))
        gradients.append(torch.autograd.grad(rows[-1].square().sum(), qkv)[0])
    for a, b in (rows, gradients):
        assert torch.equal(a[:20], b[:20]) and torch.equal(a[60:], b[60:])
    assert rows[1][20:60].isnan().all()


def test_longest_may_be_more() -> None:
    """Also where tables of rotary positions differ."""
    x = bench.example(torch.tensor([3, 0, 17]), 1, 16, torch.float32, "cpu", seed=1)
    exact, more = (jagged_attention(x["qkv"], x["offsets"], longest, 1) for longest in (17, 1000))
    torch.testing.assert_close(exact, more)


@pytest.mark.parametrize(
    ("options", "seen"), [({}, 10), ({"causal": True}, 5.5), ({"window": 3}, 3), ({"window": 3, "num_global": 1}, 5)]
)
def test_operations_are_counted(options: dict[str, Any], seen: float) -> None:
    """Two histories of ten rows: two products forward, five backward."""
    qkv = torch.randn(20, 3 * 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        jagged_attention(qkv, offsets_of([10, 10]), 10, 1, **options).sum().backward()
    assert counter.get_total_flops() == 14 * 20 * seen * 16
