"""How much of a core's matrix-product speed the interaction modules reach, eager and compiled.

    OMP_NUM_THREADS=1 python benchmarks/interaction_speed.py

Four layers of each, forward and backward, B = 4096, 32 tokens of width 32, one thread. Wukong has rank 16 and one
hidden layer of 512; the others have their default options. In each round everything runs once, with a product of two
matrices of 2048 x 2048 in between; a figure is the median over rounds of (FLOPs / time) / (the product's FLOPs / time).
Writes benchmarks/results/interaction_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench

EXAMPLES, TOKENS, DIM, LAYERS, SIDE = 4096, 32, 32, 4, 2048
WUKONG = {"name": "wukong", "rank": 16, "hidden": (512,)}
OTHERS = ("dlrm", "fm", "dcnv2", "masknet", "finalmlp", "autoint", "dhen")


class Stack(nn.Module):
    """Interaction modules one after another."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        build, place = load_registry().build, {"dim": DIM, "num_tokens_in": TOKENS, "num_tokens_out": TOKENS}
        contexts = [bench.context(i, **place) for i in range(LAYERS)]
        self.layers = nn.ModuleList(build("interaction", config, context) for context in contexts)

    def forward(self, x: Tensor) -> Tensor:
        earlier: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, earlier)
            earlier.append(x)
        return x


def step(module: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor) -> Callable[[], None]:
    """Forward and backward, gradients of inputs and parameters."""

    def once() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None
        module(x).sum().backward()

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    x = torch.randn(EXAMPLES, TOKENS, DIM, requires_grad=True)
    stacks = {str(c["name"]): Stack(c) for c in (WUKONG, *({"name": name} for name in OTHERS))}
    work: dict[str, Callable[[], None]] = {}
    flops, dense_params = {}, {}
    for name, stack in stacks.items():
        init_parameters(stack, 1)
        parameters = list(stack.parameters())
        work[name] = step(stack, parameters, x)
        with FlopCounterMode(display=False) as counter:
            work[name]()
        flops[name] = counter.get_total_flops()
        dense_params[name] = sum(p.numel() for p in parameters)
    wukong = stacks["wukong"]
    work["wukong, compiled"] = step(torch.compile(wukong), list(wukong.parameters()), x)
    flops["wukong, compiled"], dense_params["wukong, compiled"] = flops["wukong"], dense_params["wukong"]
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    work["matmul"] = lambda: torch.mm(a, b)
    seconds = measure.in_turn(work, rounds)
    peak = [2 * SIDE**3 / s for s in seconds["matmul"]]
    rows = {
        name: {
            "gflop_per_example": flops[name] / EXAMPLES / 1e9,
            "params": dense_params[name],
            "median_s": statistics.median(seconds[name]),
            "examples_per_s": EXAMPLES / statistics.median(seconds[name]),
            "share_of_matmul": measure.median_ratio([flops[name] / s for s in seconds[name]], peak),
        }
        for name in flops
    }
    report = {
        "setting": {
            "examples": EXAMPLES,
            "tokens": TOKENS,
            "dim": DIM,
            "layers": LAYERS,
            "threads": 1,
            "wukong": WUKONG,
        },
        "rounds": rounds,
        "matmul_gflop_per_s": statistics.median(peak) / 1e9,
        "modules": rows,
        **measure.machine(),
    }
    measure.write("interaction_speed", report)
    for name, row in rows.items():
        print(f"{name:18} {row['share_of_matmul']:6.1%} of matmul  {row['examples_per_s']:10,.0f} examples/s")


if __name__ == "__main__":
    main()
