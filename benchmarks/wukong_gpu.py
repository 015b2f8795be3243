"""Wukong on a GPU: what CUDA graphs give to a small one, how near a large one comes to the card, what FP8 saves.

    python benchmarks/wukong_gpu.py --out DIR [--minutes 8]

Stacks of Wukong layers alone, weights in bf16, forward and backward pass; medians of device time. Needs torch, triton,
numpy and pluggy, and PYTHONPATH=.:plugins:kernels where gemkit is not installed.

* launches: a small stack as it comes, captured in a CUDA graph, and by torch.compile(mode="reduce-overhead").
* large: achieved FLOP/s as a share of the rate of one large matrix product on the same card, eager and compiled, with
  the kernel of `fm_block` and without. FLOPs are those of PyTorch's path for all: what is computed anew does not count.
* fp8: memory that waits for the backward pass, gradients, and the loss after one step, exact and with `saved_in_fp8`.

Writes DIR/wukong_gpu.json. `--tiny` runs everything but CUDA graphs with toy sizes on a CPU, to try the script out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gemkit_kernels import paths, timing
from gemkit_kernels.bench import hardware
from gemkit_kernels.fp8 import saved_in_fp8
from gemkit_wukong.wukong import Wukong, WukongConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gemkit.interfaces import BuildContext
from gemkit.nn.init import init_parameters


class Size(NamedTuple):
    """A stack and its batch."""

    batch: int
    tokens: int
    dim: int
    rank: int
    hidden: int
    layers: int = 4

    @property
    def title(self) -> str:
        return (
            f"B {self.batch}, {self.tokens} tokens of {self.dim}, rank {self.rank}, hidden {self.hidden}, "
            f"{self.layers} layers"
        )


SMALL = Size(1024, 32, 32, 16, 512)
LARGE = tuple(Size(4096, 256, 128, 24, hidden) for hidden in (2048, 4096))
FP8 = Size(2048, 256, 128, 24, 2048)
TINY = Size(8, 6, 8, 4, 16, 2)


class Stack(nn.Module):
    """Wukong layers one after another."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        config = WukongConfig(rank=size.rank, hidden=(size.hidden,))
        # A Wukong layer asks for nothing else of its context.
        place: Any = {"schema": None, "build": None, "num_tokens_in": size.tokens, "num_tokens_out": size.tokens}
        self.layers = nn.ModuleList(
            Wukong(config, BuildContext(size.dim, layer=i, **place)) for i in range(size.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            x = layer(x, ())
        return x


class Work:
    """A stack with an input and the gradient of its output."""

    def __init__(self, size: Size, device: str) -> None:
        self.model = Stack(size)
        init_parameters(self.model, 0)
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        self.model.to(device, kind)
        self.x, self.dout = (
            torch.randn(size.batch, size.tokens, size.dim, device=device, dtype=kind) for _ in range(2)
        )
        self.x.requires_grad_()  # as if an embedding lay below
        self.gradients: tuple[Tensor, ...] = ()

    def step(self, model: Callable[[Tensor], Tensor] | None = None) -> None:
        """Forward and backward pass. Not `backward()`: accumulating needs streams that a graph cannot capture."""
        out = (self.model if model is None else model)(self.x)
        self.gradients = torch.autograd.grad(out, (self.x, *self.model.parameters()), self.dout)


def flops(size: Size) -> int:
    """Of the forward and backward pass, without computing anything."""
    with torch.device("meta"):
        model = Stack(size)
        x = torch.empty(size.batch, size.tokens, size.dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter, paths.forced(paths.PYTORCH):
        model(x).sum().backward()
    return counter.get_total_flops()


def median_ms(step: Callable[[], Any], device: str) -> float:
    """Median device time; on a CPU, the clock's."""
    if device == "cuda":
        return timing.median_ms(lambda _: step(), repeats=50)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def captured(work: Work) -> Callable[[], None]:
    """The step as one CUDA graph. `work` must be new: what autograd made on another stream cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.step()
    return graph.replay


def launches(size: Size, device: str) -> dict[str, Any]:
    """Times of a step, and how much less than as it comes."""
    work = Work(size, device)
    rows: dict[str, Any] = {"size": size.title}
    torch.manual_seed(0)
    for path in (paths.PYTORCH, paths.TRITON) if device == "cuda" else (paths.PYTORCH,):
        torch.compiler.reset()
        with paths.forced(path):
            compiled = (
                torch.compile(work.model, mode="reduce-overhead") if device == "cuda" else _quick_compile(work.model)
            )

            def compiled_step(compiled: Any = compiled) -> None:
                torch.compiler.cudagraph_mark_step_begin()
                work.step(compiled)

            found = {"eager_ms": median_ms(work.step, device), "compile_ms": median_ms(compiled_step, device)}
            exact = _gradients(work)
            if device == "cuda":
                fresh = Work(size, device)  # the same parameters
                with torch.no_grad():
                    fresh.x.copy_(work.x)
                    fresh.dout.copy_(work.dout)
                replay = captured(fresh)
                found["graph_ms"] = median_ms(replay, device)
                found["graph_gradient_error"] = _distance(_gradients(fresh, replay), exact)
        found |= {
            f"{n[:-3]}_gain": found["eager_ms"] / ms for n, ms in found.items() if n in ("compile_ms", "graph_ms")
        }
        rows[path] = found
        print("launches", path, found, flush=True)
    return rows


def large(size: Size, device: str, peak_tflop_per_s: float, deadline: float) -> dict[str, Any]:
    """Rates of a step."""
    row: dict[str, Any] = {"size": size.title, "tflop": flops(size) / 1e12}
    work = Work(size, device)
    for path in (paths.TRITON, paths.PYTORCH) if device == "cuda" else (paths.PYTORCH,):
        for mode in ("eager", "compile"):
            name = f"{mode}, fm_block in {path}"
            if time.monotonic() > deadline:
                row[name] = {"skipped": "no time was left"}
                continue
            torch.compiler.reset()
            model: Any = work.model
            if mode == "compile":
                model = torch.compile(model, dynamic=False) if device == "cuda" else _quick_compile(model)
            try:
                with paths.forced(path):
                    ms = median_ms(lambda model=model: work.step(model), device)
            except torch.OutOfMemoryError as error:
                row[name] = {"error": str(error)[:300]}
                continue
            rate = row["tflop"] / ms * 1e3
            row[name] = {"ms": ms, "tflop_per_s": rate, "of_matmul": rate / peak_tflop_per_s}
            print("large", size.title, name, row[name], flush=True)
    return row


def fp8(size: Size, device: str, least: int = 2**16) -> dict[str, Any]:
    """Memory, time, gradients and one step of SGD, exact and with FP8."""
    work, rows = Work(size, device), {"size": size.title}
    target = torch.randn_like(work.x)
    gradients, parameters = {}, list(work.model.parameters())
    start = [p.detach().clone() for p in parameters]

    def loss() -> Tensor:
        return (work.model(work.x).float() - target.float()).square().mean()

    for name, tiled in (("exact", None), ("fp8, rows", False), ("fp8, tiles", True)):
        saving = contextlib.nullcontext if tiled is None else lambda t=tiled: saved_in_fp8(parameters, least, bool(t))
        found: dict[str, float] = {}
        work.model.zero_grad(set_to_none=True)
        work.x.grad = None
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
        with saving():
            value = loss()
        if device == "cuda":
            found["saved_mb"] = (torch.cuda.memory_allocated() - before) / 1e6
        value.backward()
        gradients[name] = [p.grad.double() for p in parameters if p.grad is not None]
        found["loss"] = value.item()
        found["gradient_error"] = _distance(gradients[name], gradients["exact"])
        with torch.no_grad():
            norm = sum(float(g.square().sum()) for g in gradients[name]) ** 0.5
            for p, g in zip(parameters, gradients[name], strict=True):
                p.add_((-g / norm).to(p.dtype))  # a step of length 1
            found["loss_after_a_step"] = loss().item()
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s)

        def step(saving: Any = saving) -> None:
            work.model.zero_grad(set_to_none=True)
            with saving():
                value = loss()
            value.backward()

        found["step_ms"] = median_ms(step, device)
        rows[name] = found
        print("fp8", name, found, flush=True)
    return rows


def _quick_compile(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager")


def _gradients(work: Work, step: Callable[[], Any] | None = None) -> list[Tensor]:
    (work.step if step is None else step)()
    return [g.double() for g in work.gradients]


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """`||found - exact|| / ||exact||` over all parameters together."""
    apart = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
    return (apart / sum(float(b.square().sum()) for b in exact)) ** 0.5


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of wukong_gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="no measurement is begun after that")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("wukong_gpu.py needs an NVIDIA GPU; torch sees none. --tiny tries it out on a CPU")
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"hardware": {"torch": torch.__version__} if options.tiny else hardware()}
    report["ceilings"] = {"matmul_bf16_tflop_per_s": 1.0} if options.tiny else timing.ceilings()
    print(report, flush=True)
    peak = report["ceilings"]["matmul_bf16_tflop_per_s"]
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("fp8", lambda: fp8(TINY, device, least=32) if options.tiny else fp8(FP8, device)),
    ]
    parts += [
        ("large", lambda size=s: large(size, device, peak, deadline)) for s in ((TINY,) if options.tiny else LARGE)
    ]
    parts.append(("launches", lambda: launches(TINY if options.tiny else SMALL, device)))
    try:
        for name, part in parts:
            if time.monotonic() > deadline:
                report.setdefault(name, []).append({"skipped": "no time was left"})
                continue
            try:
                report.setdefault(name, []).append(part())
            except Exception as error:
                traceback.print_exc()
                report[name].append({"error": f"{type(error).__name__}: {str(error)[:500]}"})
            if device == "cuda":
                torch.cuda.empty_cache()
    finally:
        path = options.out / "wukong_gpu.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
