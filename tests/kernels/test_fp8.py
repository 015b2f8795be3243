"""FP8 casts in PyTorch, and saved activations."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.fp8 import bench, fp8_dequantise, fp8_quantise, saved, saved_in_fp8
from gemkit_kernels.fp8.pytorch import power_of_two_scale
from gemkit_kernels.fp8.reference import scale_of
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(5, 1), (7, 31), (33, 33), (64, 96), (1, 100), (0, 4), (4, 0)])
def test_equals_its_definition(rows: int, width: int, dtype: torch.dtype, tiled: bool) -> None:
    found = (
        bench.errors_of(rows, width, dtype, tiled, "cpu", seed=width) if rows * width else _empty(rows, width, tiled)
    )
    assert max(found.values()) == 0, found


def _empty(rows: int, width: int, tiled: bool) -> dict[str, float]:
    values, scales = fp8_quantise(torch.zeros(rows, width), tiled)
    again = fp8_dequantise(values, scales, torch.float32)
    return {"sizes": float(values.shape != (rows, width) or again.shape != (rows, width))}


def test_by_hand() -> None:
    """448 / 2^-1 is the largest of the first row; 30 takes no fraction; 17 * 2 is between 32 and 36: a tie to even."""
    x = torch.tensor([[224.0, -15.0, 17.0], [448.0, 1.0, 0.0], [449.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    values, scales = fp8_quantise(x)
    assert scales.tolist() == [0.5, 1.0, 2.0, 2.0**-126]
    expected = [[448.0, -30.0, 32.0], [448.0, 1.0, 0.0], [224.0, 1.0, -1.5], [0.0, 0.0, 0.0]]
    assert values.dtype == E4M3 and values.float().tolist() == expected
    again = fp8_dequantise(values, scales, torch.bfloat16)
    assert again.dtype == torch.bfloat16 and again[0].tolist() == [224.0, -15.0, 16.0]


def test_scales_are_powers_of_two_that_fit_exactly() -> None:
    edges = [448.0, 0.875, 2.0**-149, 2.0**-118, 3.4e38, 0.0, 1.0, 7 * 2.0**20]
    near = [torch.nextafter(torch.tensor(e), torch.tensor(to)).item() for e in edges[:4] for to in (0.0, 3e38)]
    for largest in edges + near:
        assert power_of_two_scale(torch.tensor(largest)).item() == scale_of([largest]), largest


def test_numbers_keep_four_significant_bits() -> None:
    x = torch.randn(200, 64).clamp(min=-4).bfloat16()
    again = fp8_dequantise(*fp8_quantise(x), torch.bfloat16)
    normal = x.float().abs() > x.float().abs().amax(1, keepdim=True) * 2.0**-14
    assert ((again.float() - x.float()).abs() <= x.float().abs() * 2.0**-4)[normal].all() and (again != x).any()
    assert torch.equal(fp8_dequantise(*fp8_quantise(again), torch.bfloat16), again)


def test_nan_and_infinity_are_nan_and_disturb_nothing() -> None:
    x = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf, 3.0]])
    again = fp8_dequantise(*fp8_quantise(x), torch.float32)
    assert again.isnan().tolist() == [[False, True, True, True, False]] and again[0, ::4].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_numbers_stay_finite(dtype: torch.dtype) -> None:
    """Rounding in FP8 carries them to the next power of two, which `dtype` does not have."""
    most = torch.finfo(dtype).max
    again = fp8_dequantise(*fp8_quantise(torch.tensor([[most, -most, 1.0]], dtype=dtype)), dtype)
    assert again[0, :2].tolist() == [most, -most]


def test_other_strides() -> None:
    x = torch.randn(96, 40)
    for strided in (x.t(), x[:, ::3], x[::2], x[:1].expand(50, 40)):
        for tiled in (False, True):
            found, expected = fp8_quantise(strided, tiled), fp8_quantise(strided.contiguous(), tiled)
            torch.testing.assert_close([x.float() for x in found], [x.float() for x in expected], rtol=0, atol=0)


@pytest.mark.parametrize("tiled", [False, True])
def test_compiles_whole(tiled: bool) -> None:
    def call(x: Tensor) -> Tensor:
        return fp8_dequantise(*fp8_quantise(x, tiled), torch.float32)

    x = torch.randn(40, 70)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
    assert paths.taken()["fp8"] == paths.PYTORCH


def test_wrong_arguments() -> None:
    values, scales = fp8_quantise(torch.zeros(33, 4))
    wrong: list[tuple[str, Any]] = [
        ("x has shape", lambda: fp8_quantise(torch.zeros(3))),
        ("float64", lambda: fp8_quantise(torch.zeros(3, 3).double())),
        ("values is torch.float32", lambda: fp8_dequantise(torch.zeros(33, 4), scales, torch.float32)),
        ("int32", lambda: fp8_dequantise(values, scales, torch.int32)),
        (r"scales has shape \(32,\), expected \(33\)", lambda: fp8_dequantise(values, scales[1:], torch.float32)),
        (r"expected \(2, 1\)", lambda: fp8_dequantise(values, torch.ones(1, 1), torch.float32)),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()


class Stack(nn.Module):
    """Linear maps, norms and GELUs: their inputs are saved, some by two of them."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        return x


class Recorder:
    """What autograd keeps, by storage: bytes of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks
        monkeypatch.setattr(saved.torch.autograd.graph, "saved_tensors_hooks", self)

    def __call__(self, pack: Any, unpack: Any) -> Any:
        return self.hooks(lambda x: self.seen(pack(x)), unpack)

    def seen(self, packed: Any) -> Any:
        for x in (packed.small.values, packed.small.scales) if hasattr(packed, "small") else (packed.tensor,):
            self.bytes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return packed


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.5), (torch.float32, 0.25)])
def test_saved_activations_shrink(dtype: torch.dtype, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Stack(128).to(dtype), torch.randn(512, 128, dtype=dtype)
    keep = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in keep if p.dim() == 2)
    found = []
    for least in (2**62, 2**16):
        recorder = Recorder(monkeypatch)
        with saved_in_fp8(keep, least):
            out = model(x)
        monkeypatch.undo()
        found.append(sum(recorder.bytes.values()))
        del out
    # The first layer's weight is not saved if its input wants no gradient.
    activations = [n - weights * 2 // 3 for n in found]
    assert activations[0] == 6 * x.numel() * x.element_size()
    assert share <= activations[1] / activations[0] < share * 1.05


def test_gradients_are_close_and_outputs_equal() -> None:
    model, x = Stack(128), torch.randn(512, 128, requires_grad=True)
    leaves = [x, *model.parameters()]
    expected = model(x)
    exact = torch.autograd.grad(expected.square().mean(), leaves)
    with saved_in_fp8(model.parameters(), least=1024):
        out = model(x)
    assert torch.equal(out, expected)
    for found, gradient in zip(torch.autograd.grad(out.square().mean(), leaves), exact, strict=True):
        error = (found - gradient).norm() / gradient.norm()
        assert found.dtype == gradient.dtype and 1e-6 < error < 0.03


def test_what_is_not_touched() -> None:
    """Small tensors, vectors, integers, float64 and what is kept give the gradients that they gave, bit for bit."""
    weight, large, index = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64), torch.randint(64, (64, 64))
    cases = {
        "kept": lambda: (weight @ large).square().sum() * 0 + (weight * large).sum(),
        "small": lambda: weight[:4].sin().sum(),
        "vector": lambda: weight.flatten().sin().sum(),
        "integers": lambda: weight.gather(0, index).sum(),
        "float64": lambda: weight.double().sin().sum(),
        "repeated": lambda: (weight * large[:1].expand(64, 64)).sum(),
    }
    for name, call in cases.items():
        expected = torch.autograd.grad(call(), weight)[0]
        with saved_in_fp8([weight, large], least=1024):
            out = call()
        assert torch.equal(torch.autograd.grad(out, weight)[0], expected), name


def test_any_strides_come_back() -> None:
    """Numbers that FP8 holds exactly, so that what comes back must be equal."""
    x = torch.randint(-8, 9, (6, 40, 32)).float()
    views = [x, x.transpose(0, 2), x[:, ::3], x[:, 5:], x.flatten(1), x[:, :1].expand(6, 40, 32), x[None, :, None, :3]]
    factor = torch.ones(1, requires_grad=True)
    with saved_in_fp8(least=2):
        outs = [view * factor.expand(view.shape) for view in views]
    for out, view in zip(outs, views, strict=True):
        dout = torch.randint(-2, 3, view.shape).float()
        assert torch.autograd.grad(out, factor, dout)[0] == (dout * view).sum()


class Strides(torch.autograd.Function):
    """The identity; tells the strides and the numbers that backward sees."""

    seen: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor, view: Tensor) -> Tensor:
        ctx.save_for_backward(view)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (Strides.seen,) = ctx.saved_tensors
        return gradients[0], None


def test_strides_come_back_too_where_code_insists_on_them() -> None:
    x = torch.randint(-8, 9, (6, 40, 32)).float()
    gaps = [x[:, ::3], x.transpose(0, 2)[::2], x[:, :, :5], x[:, :1, ::2].expand(6, 40, 16), x[:, 5:6]]
    for view in [*gaps, x, x.transpose(0, 2), x[2:]]:
        for same in (True, False):
            leaf = torch.ones(1, requires_grad=True)
            with saved_in_fp8(least=2, same_strides=same):
                out = Strides.apply(leaf, view)
            out.backward()
            assert torch.equal(Strides.seen, view)
            single = [i for i in range(view.dim()) if view.shape[i] > 1]
            equal = [Strides.seen.stride(i) for i in single] == [view.stride(i) for i in single]
            assert equal == (same or not any(view is g for g in gaps)), (view.stride(), Strides.seen.stride())


def test_one_tensor_is_kept_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(saved, "fp8_quantise", lambda *a: calls.append(a) or fp8_quantise(*a))
    x, a = torch.ones(64, 64), torch.ones(64, 64, requires_grad=True)
    with saved_in_fp8([a], least=1024):
        out = (
            (x * a).sum()
            + (x.t() * a).sum()
            + (x.view(64, 8, 8) * a.view(64, 8, 8)).sum()
            + (x.view(1, 64, 64) * a).sum()
        )
        assert len(calls) == 1
        x.mul_(2)
        again = (x * a).sum()
        assert len(calls) == 2
    assert torch.equal(torch.autograd.grad(out, a)[0], torch.full((64, 64), 4.0))
    assert torch.equal(torch.autograd.grad(again, a)[0], torch.full((64, 64), 2.0))


def test_a_change_in_place_is_seen() -> None:
    x, a = torch.ones(8, 8), torch.ones(8, 8, requires_grad=True)
    with saved_in_fp8(least=1024):
        out = (x * a).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


def test_memory_goes_when_the_graph_goes() -> None:
    held = []
    pack = saved._Small.__init__

    def record(self: Any, *arguments: Any) -> None:
        held.append(weakref.ref(self))
        pack(self, *arguments)

    a = torch.ones(64, 64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, saved_in_fp8([a], least=1024):
        patch.setattr(saved._Small, "__init__", record)
        out = (torch.ones(64, 64) * a).sum()
        assert len(held) == 1 and held[0]() is not None
        out.backward()
        assert held[0]() is None
