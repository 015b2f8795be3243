"""Builds a data set from logs that are larger than the memory it may use, beside DuckDB's own sort of the same file.

    python benchmarks/data_build.py [--events 20000000] [--memory 1GiB] [--keep FOLDER]

An event log in order of time, as logs are, of 200,000 users whose histories have log-normal lengths, over a million
items, and one example for ten events, both as Parquet. `gemkit data build` runs in a process of its own; the peak of
its resident memory is the kernel's count for it. Beside it DuckDB sorts the events by user and time, with the same
memory and as many threads: what any build must do at least. The sort alone neither checks cells, nor counts ids, nor
encodes, nor points examples at histories. The result goes to benchmarks/results/data_build.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gemkit.data.engine import bytes_of
from gemkit.runs.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "data_build.json"
NUM_USERS, NUM_ITEMS, EVENTS_PER_EXAMPLE = 200_000, 1_000_000, 10
PIECE, YEAR_S = 500_000, 365 * 86400

SORT = """
import sys
import duckdb
events, out, memory, threads, spilled = sys.argv[1:]
settings = {"memory_limit": memory, "threads": int(threads), "temp_directory": spilled}
with duckdb.connect(":memory:", config=settings) as connection:
    connection.execute(
        f"COPY (SELECT * FROM read_parquet('{events}') ORDER BY user, time) TO '{out}' (FORMAT parquet)"
    )
"""


def write_logs(folder: Path, num_events: int) -> None:
    """Piece by piece, so that this takes no more memory than a piece."""
    rng = np.random.default_rng(1)
    chance = np.cumsum(rng.lognormal(sigma=1.2, size=NUM_USERS))
    num_examples = num_events // EVENTS_PER_EXAMPLE
    for name, rows in (("events", num_events), ("examples", num_examples)):
        with contextlib.ExitStack() as stack:
            writer = None
            for start in range(0, rows, PIECE):
                size = min(PIECE, rows - start)
                table = _piece(rng, name, chance, size, start / rows, (start + size) / rows)
                writer = writer or stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", table.schema))
                writer.write_table(table)


def _piece(rng: np.random.Generator, name: str, chance: np.ndarray, rows: int, begin: float, end: float) -> pa.Table:
    user = np.searchsorted(chance, rng.random(rows) * chance[-1])
    # Popular items and a long tail: an item's rank has a log-uniform distribution.
    item = np.exp(rng.random(rows) * np.log(NUM_ITEMS)).astype(np.int64)
    when = 1_700_000_000 + np.sort(((begin + rng.random(rows) * (end - begin)) * YEAR_S).astype(np.int64))
    columns = {"user": user, "time": when, "item": item}
    if name == "events":
        columns["kind"] = pa.array(["view", "click", "buy"]).take(pa.array(rng.choice(3, rows, p=[0.8, 0.18, 0.02])))
    else:
        columns |= {"hour": when // 3600 % 24, "price": rng.lognormal(size=rows).astype(np.float32)}
        columns["click"] = (rng.random(rows) < 0.2).astype(np.int8)
    return pa.table(columns)


def measured(command: list[str]) -> dict[str, float]:
    """Runs a command; seconds, seconds of CPU, and the largest resident memory of the process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:3]} ended with {os.waitstatus_to_exitcode(status)}")
    wall_s = time.perf_counter() - started
    return {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def build_command(folder: Path, memory: str) -> list[str]:
    """`gemkit data build`, as a person would type it."""
    command = [str(Path(sys.executable).with_name("gemkit")), "data", "build", "table", "--memory", memory]
    command += [f"data.examples={folder}/examples.parquet", f"data.events={folder}/events.parquet"]
    command += [f"data.root={folder}/datasets", "data.folder=log", "data.user=user", "data.timestamp=time"]
    command += ["data.stream=kind", "data.tasks=[{name: click}]", "data.event_fields=[{name: item}]"]
    command += ["data.categorical=[{name: item, role: item}, {name: user, role: user}, {name: hour}]"]
    return [*command, "data.dense=[{name: price}]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--keep", type=Path, help="write logs and data set here, and leave them")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "examples.parquet").is_file():
            write_logs(folder, options.events)
        report = measure(folder, options.memory)
    report["environment"] = describe_environment()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    build, sort, limit = report["build"], report["duckdb_sort"], report["memory_bytes"]
    print(f"build        {build['wall_s']:7.1f} s  {report['events_per_s']:>11,.0f} events/s", end="")
    print(f"  peak {build['peak_bytes'] / 2**20:,.0f} of {limit / 2**20:,.0f} MiB, {report['partitions']} partitions")
    print(f"DuckDB sort  {sort['wall_s']:7.1f} s  {report['duckdb_events_per_s']:>11,.0f} events/s", end="")
    print(f"  peak {sort['peak_bytes'] / 2**20:,.0f} MiB")
    print(f"the build takes {report['build_over_sort']:.1f} times as long")
    sys.exit(build["peak_bytes"] > limit)


def measure(folder: Path, memory: str) -> dict[str, Any]:
    """Both ways, one after the other, from the same file."""
    events, sorted_log = folder / "events.parquet", folder / "sorted.parquet"
    threads = min(4, os.cpu_count() or 1)  # as many as the build's engine has
    sort = measured(
        [sys.executable, "-c", SORT, str(events), str(sorted_log), memory, str(threads), f"{folder}/spilled"]
    )
    build = measured(build_command(folder, memory))
    manifest = json.loads((folder / "datasets" / "log" / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["rows"]
    files = [p for p in (folder / "datasets" / "log").rglob("*") if p.is_file()]
    return {
        "rows": rows,
        "partitions": manifest["partitions"],
        "memory_bytes": bytes_of(memory),
        "threads": threads,
        "source_bytes": events.stat().st_size + (folder / "examples.parquet").stat().st_size,
        "dataset_bytes": sum(p.stat().st_size for p in files),
        "build": build,
        "duckdb_sort": sort,
        "events_per_s": rows["events"] / build["wall_s"],
        "duckdb_events_per_s": rows["events"] / sort["wall_s"],
        "build_over_sort": build["wall_s"] / sort["wall_s"],
    }


if __name__ == "__main__":
    main()
