"""`gemkit plan` beside what was measured: runs as those of benchmarks/parallel_speed.py on 1, 2 and 4 processes.

    python benchmarks/plan_measured.py

What the plan is told is measured apart from the runs that it is to foretell: the matrix-product peak of one thread; the
rate of an all-gather of gloo among as many processes, and the time of one of a few bytes; and the steps of `hsdp` in
one process with two batches, which make what a step takes in any case and the local MFU. Where processes are more than
cores they share them, so each has its part of the peak and takes so much longer for what is fixed. Nothing overlaps:
gloo computes on the cores that it interrupts. The result goes to benchmarks/results/plan_measured.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import parallel_speed
import torch
import torch.distributed as dist

from gemkit.config.compose import compose
from gemkit.config.memory import available_bytes
from gemkit.cost.peak import matmul_peak
from gemkit.plan.assumptions import Assumptions, Hypothetical
from gemkit.plan.gpus import this_cpu
from gemkit.plan.measured import Measured, compare, fixed_and_rate, local_mfu
from gemkit.plan.plan import make_plan
from gemkit.plan.source import workload_of
from gemkit.registry import load_registry

RESULTS = Path(__file__).resolve().parent / "results"
LAYOUTS = {1: "hsdp, 1 process", 2: "hsdp, 2 processes", 4: "hsdp, 4 processes (2 x 2)"}
GATHERED, SMALL, REPEATS = 2**24, 256, 20
"""Bytes of the two all-gathers."""
ROUNDS = 3
"""Runs of each kind, in turn; the best of them counts, as in parallel_speed.py."""


def network(processes: int) -> tuple[float, float]:
    """Bytes a second that each process receives in an all-gather of 16 MB among as many, and seconds of a small one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, __file__, "--child"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    rate, latency_s = map(float, done.stdout.split()[-2:])
    return rate, latency_s


def child() -> None:
    """One of the processes of `network`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    seconds = {}
    for size in (SMALL, GATHERED):
        own = torch.zeros(size // 4 // world)
        parts = [torch.empty_like(own) for _ in range(world)]
        times = []
        for _ in range(REPEATS):
            dist.barrier()
            began = time.perf_counter()
            dist.all_gather(parts, own)
            times.append(time.perf_counter() - began)
        seconds[size] = statistics.median(times)
    if dist.get_rank() == 0:
        print(GATHERED * (world - 1) / world / seconds[GATHERED], seconds[SMALL])
    dist.destroy_process_group()


def steps(batch: int, folder: Path) -> tuple[float, dict[int, float]]:
    """Seconds of a step of `hsdp`: in one process with a quarter of the batch, and with all of it by processes."""
    few = (1, (*parallel_speed.HSDP, f"train.batch_size={batch // 4}"))
    kinds = {0: few} | {size: parallel_speed.LAYOUTS[name] for size, name in LAYOUTS.items()}
    rates: dict[int, list[float]] = {size: [] for size in kinds}
    for _ in range(ROUNDS):
        for size, (processes, words) in kinds.items():
            run = parallel_speed.train(processes, words, 24, folder)
            rates[size].append(parallel_speed.measured(run, 2)["examples_per_s"])
            print(size, rates[size], flush=True)
    return batch // 4 / max(rates[0]), {size: batch / max(rates[size]) for size in LAYOUTS}


def main() -> None:
    """See the module."""
    cores, registry = os.cpu_count() or 1, load_registry()
    peak = matmul_peak("cpu", torch.float32, 1)
    with tempfile.TemporaryDirectory() as folder:
        run = compose([*parallel_speed.RUN, f"data.root={folder}"], registry)
        batch = run.train.batch_size
        work = workload_of(run, registry, Hypothetical(), batch)
        few_s, measured_s = steps(batch, Path(folder))
    fixed_s, rate = fixed_and_rate((batch // 4, few_s), (batch, measured_s[1]))
    mfu = local_mfu(rate, work.flops, peak)
    plans, told = [], {}
    for size in LAYOUTS:
        bytes_per_s, latency_s = network(size) if size > 1 else (1e12, 0.0)
        share = min(1.0, cores / size)
        gpu = this_cpu(peak * share, float(available_bytes() or 0))
        gpu = dataclasses.replace(
            gpu, intra_bytes_per_s=bytes_per_s, inter_bytes_per_s=bytes_per_s, memory_bytes_per_s=1e10 * share
        )
        assumed = Assumptions(
            local_mfu=mfu,
            fixed_ms=1e3 * fixed_s / share,
            latency_us=1e6 * latency_s,
            overlap=0.0,
            sparse_prefetch="none",
            dp_shard=min(size, 2),
        )
        planner: Any = registry.table_planner()
        plans.append(make_plan(work, gpu, size, assumed, planner, local_batch=batch // size, checkpointed=False))
        told[size] = {"gather_bytes_per_s": bytes_per_s, "latency_s": latency_s, "share_of_peak": share}
    found = compare([Measured(world_size=n, step_s=seconds) for n, seconds in measured_s.items()], plans)
    result = {"peak_flop_per_s": peak, "local_mfu": mfu, "fixed_s": fixed_s, "quarter_batch_s": few_s, "told": told}
    result["compared"] = [dataclasses.asdict(row) | {"error": row.error} for row in found]
    (RESULTS / "plan_measured.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["compared"]))


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
