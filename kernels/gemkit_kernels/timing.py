"""Times on a GPU: medians of device time, with inputs that no cache holds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_S = 0.5
"""Seconds that the repeats of one measurement should not exceed by much."""

Inputs = dict[str, Any]
Call = Callable[[Inputs], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed at one size.

    Attributes:
        op: Folder of the operation.
        name: The size, in words.
        inputs: Makes inputs on the GPU from a seed; tensors that require a gradient get one.
        calls: Candidates by name; each takes the inputs and returns a tensor, or tuples of them. What a candidate
            derives from offsets or lengths in each step (masks, packed copies) belongs into its call.
        forward_bytes: The fewest bytes that must be read and written, each tensor once.
        forward_flop: Floating-point operations of the same.
        backward_bytes, backward_flop: Likewise, with what must be computed anew; 0: no backward pass is timed.
        sets: Sets of inputs that calls take in turn; together they should be several times the cache.
    """

    op: str
    name: str
    inputs: Callable[[int], Inputs]
    calls: dict[str, Call]
    forward_bytes: float
    forward_flop: float
    backward_bytes: float = 0.0
    backward_flop: float = 0.0
    sets: int = 2


def median_ms(call: Callable[[int], Any], repeats: int = 20, warm_up: int = 3) -> float:
    """Median device time of `call(i)`, i counting up; fewer repeats, at least 3, for what takes long."""
    for i in range(warm_up):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call(i)
        torch.cuda.synchronize()
        repeats = min(repeats, max(3, int(MOST_S / (time.perf_counter() - began)))) if i else repeats
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(pairs):
        start.record()
        call(i)
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))


def step(case: Case, call: Call, inputs: Inputs) -> None:
    """Forward and backward pass once."""
    out = _differentiable(call(inputs))
    if out and case.backward_bytes:
        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        torch.autograd.grad(out, leaves, [torch.ones_like(x) for x in out])


def waits(case: Case, call: Call) -> bool:
    """Whether a step makes the host wait for the GPU."""
    inputs = case.inputs(0)
    step(case, call, inputs)  # what is made once does not count
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, call, inputs)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def ceilings() -> dict[str, float]:
    """The card's own rates: a large copy, bytes read and written, and a large bf16 product of random numbers."""
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_ms = median_ms(lambda _: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = median_ms(lambda _: a @ b)
    return {
        "copy_gb_per_s": 2 * 2**30 * 2 / copy_ms / 1e6,
        "matmul_bf16_tflop_per_s": 2 * 8192**3 / product_ms / 1e9,
    }


def times(case: Case, call: Call, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of forward, backward, and both after each other; and the memory that a step needs.

    `saved_mb` is what the forward pass keeps for the backward pass, its output included; `peak_mb` the most that is
    held at any time beyond the inputs.
    """
    sets = [case.inputs(seed) for seed in range(case.sets)]
    with torch.no_grad():
        found = {"forward_ms": median_ms(lambda i: call(sets[i % case.sets]), repeats)}
    if not case.backward_bytes:
        return found
    leaves = [[x for x in s.values() if isinstance(x, Tensor) and x.requires_grad] for s in sets]
    outs = [_differentiable(call(s)) for s in sets]
    douts = [[torch.randn_like(x) for x in out] for out in outs]

    def backward(i: int) -> None:
        j = i % case.sets
        torch.autograd.grad(outs[j], leaves[j], douts[j], retain_graph=True)

    found["backward_ms"] = median_ms(backward, repeats)
    outs.clear()

    def both(i: int) -> None:
        j = i % case.sets
        torch.autograd.grad(_differentiable(call(sets[j])), leaves[j], douts[j])

    found["step_ms"] = median_ms(both, repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = _differentiable(call(sets[0]))
    found["saved_mb"] = (torch.cuda.memory_allocated() - before) / 1e6
    torch.autograd.grad(out, leaves[0], douts[0])
    found["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


def rates(case: Case, found: dict[str, float], ceiling: dict[str, float]) -> dict[str, float]:
    """Achieved rates, and their shares of the ceilings, for the passes that were timed."""
    result = {}
    for name in ("forward", "backward"):
        ms = found.get(f"{name}_ms")
        if ms:
            gb, tflop = getattr(case, f"{name}_bytes") / ms / 1e6, getattr(case, f"{name}_flop") / ms / 1e9
            result[f"{name}_gb_per_s"], result[f"{name}_tflop_per_s"] = gb, tflop
            result[f"{name}_of_copy"] = gb / ceiling["copy_gb_per_s"]
            result[f"{name}_of_matmul"] = tflop / ceiling["matmul_bf16_tflop_per_s"]
    return result


def _differentiable(out: Any) -> list[Tensor]:
    outs = [out] if isinstance(out, Tensor) else list(out)
    return [x for x in outs if x.requires_grad]
