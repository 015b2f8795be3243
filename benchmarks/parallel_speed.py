"""What several processes cost beside one: the same global batches on one machine.

    python benchmarks/parallel_speed.py [--repeats 3] [--steps 24]

Runs of `gemkit train` on a synthetic ads world, each a process (or several, under torchrun) of its own with one thread
each, all layouts in turn, `--repeats` times. Of each the median over its rows of examples/s and the processor time a
step (all processes together), and for checkpoints of a wider model, written at once and in the background, the seconds
that training waited for one; the best of the repeats. On a machine with fewer cores than processes the rate says
little; the processor time beside `single` is what a layout costs. The result goes to
benchmarks/results/parallel_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gemkit.runs.folder import RunFolder
from gemkit.runs.inspect import inspect_run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "parallel_speed.json"
RUN = (
    *("experiment=adsworld_silent", "data.num_users=2000", "train.batch_size=512", "train.log_every=4"),
    *("loader.workers=0", "train.num_threads=1", "optimizer.warmup_steps=5", "train.eval_every=1000"),
    *("size.dim=16", "data.max_history=32", "train.eval_batch_size=512"),
)
HSDP = ("parallel=hsdp", "parallel.sharding=row_wise", "parallel.replicate_below=1000")
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "single": (1, ("parallel=single",)),
    "hsdp, 1 process": (1, HSDP),
    "hsdp, 2 processes": (2, HSDP),
    "hsdp, 4 processes (2 x 2)": (4, (*HSDP, "parallel.dp_shard=2")),
    "hsdp, 4 processes (2 x 2), ids prefetched": (4, (*HSDP, "parallel.dp_shard=2", "parallel.prefetch_ids=true")),
    "ddp, 2 processes": (2, ("parallel=ddp",)),
    "ddp, 4 processes": (4, ("parallel=ddp",)),
}
SAVED = (*HSDP, "parallel.dp_shard=2", "train.checkpoint_every=5", "size.dim=128", "train.batch_size=64")
SAVING = {"at once": SAVED, "in the background": (*SAVED, "train.async_checkpoints=true")}


def train(processes: int, overrides: tuple[str, ...], steps: int, data: Path) -> RunFolder:
    """One run, in a folder that goes when the caller's does."""
    runs = Path(tempfile.mkdtemp(dir=data))
    command = [sys.executable, "-m", "gemkit.cli.main"]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*torchrun, "-m", "gemkit.cli.main"]
    words = [*RUN, *overrides, f"train.max_steps={steps}", "parallel.accelerator=cpu"]
    words += [f"data.root={data / 'datasets'}", f"runs={runs}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*command, "train", *words], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(overrides)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return RunFolder.open(next(p for p in runs.iterdir() if p.is_dir()))


def measured(folder: RunFolder, rows: int) -> dict[str, float]:
    """The median rate over the rows but the first `rows`, in which things are made once; processor time a step."""
    found = [row for row in folder.rows() if row["split"] == "train"][rows:]
    return {
        "examples_per_s": statistics.median(row["examples_per_s"] for row in found),
        "busy_s": folder.metrics()["train"]["busy_s"],
        "loss": found[-1]["loss"],
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    layouts: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    saving: dict[str, list[float]] = {name: [] for name in SAVING}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for repeat in range(options.repeats):
            for name, (processes, overrides) in LAYOUTS.items():
                layouts[name].append(measured(train(processes, overrides, options.steps, data), 2))
                print(repeat, name, layouts[name][-1], flush=True)
            for name, overrides in SAVING.items():
                run = train(4, overrides, options.steps, data)
                facts = run.metrics()["train"]
                saving[name].append(facts["checkpoint_wait_s"] / facts["checkpoints"])
                size = max(row["bytes"] for row in inspect_run(run.path)["checkpoints"])
                print(repeat, name, saving[name][-1], size, flush=True)
    result = summary(options.repeats, layouts, saving) | {"checkpoint_bytes": size}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def summary(repeats: int, layouts: dict[str, list[dict[str, float]]], saving: dict[str, list[float]]) -> dict[str, Any]:
    """The best of each layout's repeats, as other work on a machine only ever takes time; all of them beside it."""
    best = {
        name: {
            "examples_per_s": max(found["examples_per_s"] for found in repeated),
            "busy_s": min(found["busy_s"] for found in repeated),
        }
        for name, repeated in layouts.items()
    }
    alone = best["single"]
    return {
        "command": f"python benchmarks/parallel_speed.py --repeats {repeats}",
        "cores": os.cpu_count(),
        "run": list(RUN),
        "layouts": {
            name: {
                "processes": LAYOUTS[name][0],
                **row,
                "rate_of_single": row["examples_per_s"] / alone["examples_per_s"],
                "busy_of_single": row["busy_s"] / alone["busy_s"],
                "repeats": layouts[name],
            }
            for name, row in best.items()
        },
        "checkpoint_wait_s": {name: min(repeated) for name, repeated in saving.items()},
        "checkpoint_wait_repeats_s": saving,
    }


if __name__ == "__main__":
    main()
