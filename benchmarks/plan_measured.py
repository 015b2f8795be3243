"""`gemkit plan` beside what was measured: the runs of benchmarks/parallel_speed.py on 1, 2 and 4 processes.

    python benchmarks/plan_measured.py

What the plan is told is measured apart from the runs that it is to foretell: the matrix-product peak of one thread,
the rate of an all-gather of gloo among as many processes, and the speed of `hsdp` in one process, which makes the local
MFU. Where processes are more than cores they share them, so each has its part of the peak. Nothing overlaps: gloo
computes on the cores that it interrupts. The result goes to benchmarks/results/plan_measured.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gemkit.config.compose import compose
from gemkit.config.memory import available_bytes
from gemkit.cost.peak import matmul_peak
from gemkit.plan.assumptions import Assumptions, Hypothetical
from gemkit.plan.gpus import this_cpu
from gemkit.plan.measured import Measured, compare, local_mfu
from gemkit.plan.plan import make_plan
from gemkit.plan.source import workload_of
from gemkit.registry import load_registry

RESULTS = Path(__file__).resolve().parent / "results"
LAYOUTS = {1: "hsdp, 1 process", 2: "hsdp, 2 processes", 4: "hsdp, 4 processes (2 x 2)"}
GATHERED, REPEATS = 2**24, 10


def bandwidth(processes: int) -> float:
    """Bytes a second that each process receives in an all-gather of 16 MB among as many."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, __file__, "--child"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child() -> None:
    """One of the processes of `bandwidth`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own = torch.zeros(GATHERED // 4 // dist.get_world_size())
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    times = []
    for _ in range(REPEATS):
        dist.barrier()
        began = time.perf_counter()
        dist.all_gather(parts, own)
        times.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(4 * own.numel() * (dist.get_world_size() - 1) / sorted(times)[REPEATS // 2])
    dist.destroy_process_group()


def main() -> None:
    """See the module."""
    speed = json.loads((RESULTS / "parallel_speed.json").read_text(encoding="utf-8"))
    cores, registry = os.cpu_count() or 1, load_registry()
    peak = matmul_peak("cpu", torch.float32, 1)
    with tempfile.TemporaryDirectory() as folder:
        run = compose([*speed["run"], f"data.root={folder}"], registry)
        batch = run.train.batch_size
        work = workload_of(run, registry, Hypothetical(), batch)
    rates = {size: speed["layouts"][name]["examples_per_s"] for size, name in LAYOUTS.items()}
    mfu = local_mfu(rates[1], work.flops, peak)
    plans, told = [], {}
    for size in LAYOUTS:
        rate = bandwidth(size) if size > 1 else 1e12
        share = min(1.0, cores / size)
        gpu = this_cpu(peak * share, float(available_bytes() or 0))
        gpu = dataclasses.replace(gpu, intra_bytes_per_s=rate, inter_bytes_per_s=rate, memory_bytes_per_s=1e10 * share)
        assumed = Assumptions(local_mfu=mfu, overlap=0.0, sparse_prefetch="none", dp_shard=min(size, 2))
        planner: Any = registry.table_planner()
        plans.append(make_plan(work, gpu, size, assumed, planner, local_batch=batch // size, checkpointed=False))
        told[size] = {"gather_bytes_per_s": rate, "share_of_peak": share}
    found = compare([Measured(world_size=n, step_s=batch / rate) for n, rate in rates.items()], plans)
    result = {"peak_flop_per_s": peak, "local_mfu": mfu, "told": told}
    result["compared"] = [dataclasses.asdict(row) | {"error": row.error} for row in found]
    (RESULTS / "plan_measured.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["compared"]))


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
