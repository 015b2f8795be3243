"""FP8 kernels against their definition.

The interpreter casts to FP8 wrongly where rounding carries into the exponent, turns infinity into a number, and loses
NaN on the way back. So numbers here are such that FP8 holds them exactly; that the hardware's own cast rounds as it
should is checked on a GPU, by `fp8/bench.py`.
"""

from __future__ import annotations

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.fp8.op import _dequantise_operator, _quantise_operator, fp8_dequantise, fp8_quantise
from gemkit_kernels.fp8.reference import KIND, fp8_quantise_reference
from torch import Tensor


def exact(rows: int, width: int, dtype: torch.dtype, tiled: bool) -> Tensor:
    """Any numbers of FP8, with a power of two for each row, or for each tile."""
    codes = torch.randint(0, 256, (rows, width), dtype=torch.uint8)
    numbers = codes.masked_fill(codes % 128 == 127, 0).view(KIND).float()
    exponents = torch.randint(-4, 5, (rows, width)).float()
    exponents = exponents[::32, ::32].repeat_interleave(32, 0)[:rows].repeat_interleave(32, 1)[:, :width]
    return (numbers * 2.0 ** (exponents if tiled else exponents[:, :1])).to(dtype)


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(5, 1), (7, 31), (33, 33), (64, 96), (300, 40), (2, 9000)])
def test_equals_its_definition(rows: int, width: int, dtype: torch.dtype, tiled: bool) -> None:
    x = exact(rows, width, dtype, tiled)
    values, scales = fp8_quantise(x, tiled)
    exact_values, exact_scales = fp8_quantise_reference(x, tiled)
    assert torch.equal(scales, exact_scales) and torch.equal(values.float(), exact_values.float())
    again = fp8_dequantise(values, scales, dtype)
    assert again.dtype == dtype and torch.equal(again, x)
    assert paths.taken()["fp8"] == paths.TRITON


def test_scales_do_not_see_nan_and_infinity() -> None:
    x = torch.tensor([[1.75, torch.nan, torch.inf, -torch.inf, -3.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    _, scales = fp8_quantise(x)
    assert scales.tolist() == [2.0**-7, 2.0**-126]
    assert fp8_quantise(x, tiled=True)[1].tolist() == [[2.0**-7]]


def test_the_largest_numbers_stay_finite() -> None:
    values, scales = torch.tensor([[448.0, -448.0]] * 2).to(KIND), torch.tensor([128.0, 256.0])
    most = torch.finfo(torch.float16).max
    assert fp8_dequantise(values, scales, torch.float16).tolist() == [[57344.0, -57344.0], [most, -most]]


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
def test_nothing_to_do(tiled: bool) -> None:
    for shape in ((0, 5), (5, 0)):
        values, scales = fp8_quantise(torch.zeros(shape), tiled)
        assert values.shape == shape and scales.isfinite().all()
        assert fp8_dequantise(values, scales, torch.float32).shape == shape


def test_other_strides() -> None:
    x = exact(70, 40, torch.float32, tiled=False)
    for strided in (x.t(), x[:, ::3], x[::2]):
        found, expected = fp8_quantise(strided), fp8_quantise(strided.contiguous())
        assert torch.equal(found[1], expected[1]) and torch.equal(found[0].float(), expected[0].float())


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
def test_operators(tiled: bool) -> None:
    x = exact(40, 33, torch.float32, tiled)
    checks = ("test_faketensor", "test_autograd_registration")  # the others compare, which FP8 tensors cannot on a CPU
    torch.library.opcheck(_quantise_operator, (x, tiled), test_utils=checks)
    torch.library.opcheck(_dequantise_operator, (*fp8_quantise(x, tiled), torch.float32), test_utils=checks)


def test_compiles_whole() -> None:
    def call(x: Tensor) -> Tensor:
        return fp8_dequantise(*fp8_quantise(x), torch.float32)

    x = exact(10, 20, torch.float32, tiled=False)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), x)
