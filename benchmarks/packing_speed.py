"""Ways of bringing the chunks of jagged histories into one shape, for attention inside chunks on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/packing_speed.py

Forward and backward of attention inside chunks of 64, from queries, keys and values side by side to mixed values; D 64,
4 heads, 8 histories of log-normal lengths (mean T / 4, the longest T), one thread. The same attention with rotary
positions everywhere; only the packing differs:

* `chunk_attention`: the operation as it is, which makes its places from the chunks' starts in every call.
* `index gather`: `index_select` with places made beforehand; its gradient is added up, row by row.
* `aligned layout`: the same places, the gradient read from where each row went.
* `fbgemm`: `jagged_to_padded_dense` with chunks as rows, and its inverse.

Writes benchmarks/results/packing_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import measure
import torch
from gemkit_kernels.chunk_attention import chunk_attention
from gemkit_kernels.lengths import chunk_starts, log_normal
from torch import Tensor

from gemkit.data.collate import plain_layout  # noqa: F401  (loads what a run loads, FBGEMM's operators among it)
from gemkit.nn.attention import attention
from gemkit.nn.jagged import chunk_plan, from_chunks, to_chunks

DIM, HEADS, SIZE, HISTORIES = 64, 4, 64, 8
LENGTHS = (512, 2048, 8192)


def ways(lengths: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each way as a function of queries, keys and values (T, 3 D)."""
    total, starts = int(lengths.sum()), chunk_starts(lengths, SIZE)
    plan = chunk_plan(lengths.numpy(), SIZE)

    def operation(qkv: Tensor) -> Tensor:
        return chunk_attention(qkv, starts, SIZE, HEADS)[0]

    def gathered(qkv: Tensor) -> Tensor:
        chunks = qkv.index_select(0, plan.gather.view(-1)).view(*plan.gather.shape, -1)
        return attention(chunks, plan.valid, HEADS).flatten(0, 1).index_select(0, plan.position)

    def aligned(qkv: Tensor) -> Tensor:
        return from_chunks(attention(to_chunks(qkv, plan), plan.valid, HEADS), plan)

    valid = torch.arange(SIZE) < starts.diff().unsqueeze(1)

    def fbgemm(qkv: Tensor) -> Tensor:
        offsets = [starts.long()]
        chunks = torch.ops.fbgemm.jagged_to_padded_dense(qkv, offsets, [SIZE], 0.0)
        mixed = attention(chunks, valid, HEADS)
        rows: Tensor = torch.ops.fbgemm.dense_to_jagged(mixed, offsets, total)[0]
        return rows

    return {"chunk_attention": operation, "index gather": gathered, "aligned layout": aligned, "fbgemm": fbgemm}


def main() -> None:
    """See the module."""
    import fbgemm_gpu  # noqa: F401

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for longest in LENGTHS:
        lengths = log_normal(HISTORIES * longest // 4, longest, seed=1)
        qkv = torch.randn(int(lengths.sum()), 3 * DIM, requires_grad=True)
        weights = torch.randn(int(lengths.sum()), DIM)
        calls = ways(lengths)
        expected = calls["aligned layout"](qkv)
        for call in calls.values():
            torch.testing.assert_close(call(qkv), expected, rtol=1e-4, atol=1e-5)

        def timed(call: Callable[[Tensor], Tensor], x: Tensor = qkv, w: Tensor = weights) -> Callable[[], Any]:
            return lambda: torch.autograd.grad((call(x) * w).sum(), x)

        seconds = measure.in_turn({name: timed(call) for name, call in calls.items()}, rounds)
        rows[str(longest)] = {
            name: {
                "median_ms": 1e3 * statistics.median(found),
                "least_ms": 1e3 * min(found),
                "of_chunk_attention": measure.median_ratio(found, seconds["chunk_attention"]),
            }
            for name, found in seconds.items()
        }
        print(longest, {name: f"{row['median_ms']:.1f} ms" for name, row in rows[str(longest)].items()})
    setting = {"dim": DIM, "heads": HEADS, "chunk": SIZE, "events": "2 T", "threads": 1, "rounds": rounds}
    measure.write("packing_speed", {"setting": setting, "ways": rows, **measure.machine()})


if __name__ == "__main__":
    main()
