"""Bytes on disk and examples per second of the event log, beside the same histories inside Parquet rows.

    python benchmarks/data_reading.py [--examples 1000000 --users 50000]

One million impressions of 50,000 users who have 35 million events, windows of at most 2,048 events, three columns.
gemkit stores each event once and reads shuffled examples; the rival holds each history inside its row and is read in
order, as fast as pyarrow can. Both on one thread, CPU time, in turn within one process, medians of several rounds.
The ceiling is a plain memory copy of the bytes that a batch delivers. The result goes to
benchmarks/results/data_reading.json.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gemkit.data import storage
from gemkit.data.arrays import offsets_of
from gemkit.data.build import build
from gemkit.data.collate import Reading, collate
from gemkit.data.dataset import Dataset
from gemkit.data.histories import gather, newest
from gemkit.data.schema import CategoricalFeature, EventField, Task
from gemkit.data.source import Source, Stream, TableRule
from gemkit.runs.environment import describe_environment

RESULTS = Path(__file__).resolve().parent / "results" / "data_reading.json"
WINDOW, NUM_ITEMS, STREAMS = 2048, 1_000_000, ("view", "click", "buy")
BATCH, BATCHES, ROUNDS = 1024, 100, 7
YEAR_S = 365 * 86400
COPIED = np.ones(1 << 29, np.uint8)


class World:
    """Users with log-normal numbers of events over a year; impressions fall on moments of its last eight months."""

    def __init__(self, num_users: int, num_examples: int, events_per_user: float) -> None:
        rng = np.random.default_rng(1)
        lengths = rng.lognormal(np.log(events_per_user) - 0.5, 1.0, num_users)
        self.offsets = offsets_of(np.maximum(1, lengths).astype(np.int64))
        self.num_users, self.num_examples = num_users, num_examples

    def events(self) -> Iterator[pa.Table]:
        for first in range(0, self.num_users, 500):
            rng = np.random.default_rng([2, first])
            users = np.arange(first, min(first + 500, self.num_users))
            counts = np.diff(self.offsets)[users]
            n = int(counts.sum())
            yield pa.table(
                {
                    "user": np.repeat(users, counts),
                    "time": 1_700_000_000 + rng.integers(0, YEAR_S, n),
                    "item": (NUM_ITEMS * rng.random(n) ** 2).astype(
                        np.int64
                    ),  # popularity falls with the root of the rank
                    "kind": pa.array(STREAMS).take(pa.array(rng.choice(3, n, p=[0.8, 0.18, 0.02]))),
                }
            )

    def examples(self) -> Iterator[pa.Table]:
        for first in range(0, self.num_examples, 100_000):
            rng = np.random.default_rng([3, first])
            n = min(100_000, self.num_examples - first)
            yield pa.table(
                {
                    "user": rng.integers(0, self.num_users, n),
                    "time": 1_700_000_000 + rng.integers(YEAR_S * 35 // 100, YEAR_S, n),
                    "item": rng.integers(1, NUM_ITEMS, n),
                    "click": rng.integers(0, 2, n),
                }
            )

    def source(self) -> Source:
        rows = int(self.offsets[-1])
        return Source(
            name="reading",
            examples=Stream(self.examples, self.num_examples * 32),
            events=Stream(self.events, rows * 32),
            categorical=(CategoricalFeature(name="item", role="item"),),
            event_fields=(EventField(name="item"),),
            tables=(TableRule(name="item", hash_rows=NUM_ITEMS),),
            tasks=(Task(name="click"),),
            user="user",
            timestamp="time",
            stream="kind",
        )


def columns_of(data: Dataset, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Item, time and kind of the events that the examples see, in the types of the files, and their offsets."""
    windows = newest(data, rows, WINDOW)
    names = ("item", storage.TIMESTAMP, storage.STREAM)
    return {name: gather(data, name, windows) for name in names}, offsets_of(windows.end - windows.start)


def write_rows(data: Dataset, path: Path, compression: str) -> None:
    """The same histories inside the rows of a Parquet file, in order of time, as impressions are logged."""
    writer = None
    order = np.argsort(np.asarray(data.columns[storage.TIMESTAMP]), kind="stable")
    for first in range(0, data.num_examples, 10_000):
        rows = order[first : first + 10_000]
        columns, offsets = columns_of(data, rows)
        lists = {n: pa.LargeListArray.from_arrays(offsets, pa.array(v)) for n, v in columns.items()}
        table = pa.table(lists)
        writer = writer or pq.ParquetWriter(path, table.schema, compression=compression)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def log_bytes(data: Dataset) -> int:
    """Bytes of the event log, its users and the pointers of the examples."""
    files = [data.folder / name for name in data.manifest["files"] if name.endswith((storage.EVENTS, storage.USERS))]
    pointers = (storage.USER, storage.HISTORY_END, storage.HISTORY)
    each = sum(s.examples.columns[n].nbytes for s in data.shards for n in pointers)
    return sum(f.stat().st_size for f in files) + each


def seconds(work: Callable[[], int]) -> tuple[float, int]:
    start = time.process_time()
    count = work()
    return time.process_time() - start, count


def copy(size: int) -> int:
    """Copies `BATCHES` times `size` bytes that no cache holds: what delivering the batches costs at least."""
    rounds = len(COPIED) // size
    source, target = COPIED[: rounds * size].reshape(rounds, size), np.ones(size, np.uint8)
    for i in range(BATCHES):
        np.copyto(target, source[i % rounds])
    return BATCHES


def measure(data: Dataset, path: Path) -> dict[str, Any]:
    """Examples per CPU second of each way of reading; one number a round."""
    rng = np.random.default_rng(4)
    reading = Reading(max_history=WINDOW)
    rates: dict[str, list[float]] = {"log_columns": [], "log_batches": [], "parquet_rows": [], "copy": []}
    sizes: list[int] = []
    for _ in range(ROUNDS):
        order = rng.permutation(data.num_examples)[: BATCH * BATCHES].reshape(BATCHES, BATCH)

        def log_columns(order: np.ndarray = order) -> int:
            for rows in order:
                columns, _ = columns_of(data, rows)
                sizes.append(sum(v.nbytes for v in columns.values()))
            return order.size

        def log_batches(order: np.ndarray = order) -> int:
            for rows in order:
                collate(data, rows, reading)
            return order.size

        def parquet_rows() -> int:
            read = 0
            file = pq.ParquetFile(path)
            for batch in file.iter_batches(BATCH, use_threads=False):
                for column in batch.columns:
                    column.values.to_numpy(), column.offsets.to_numpy()
                read += batch.num_rows
                if read >= BATCH * BATCHES:
                    break
            return read

        for work in (log_columns, parquet_rows, log_batches):
            spent, count = seconds(work)
            rates[work.__name__].append(count / spent)
        rates["copy"].append(BATCH * BATCHES / seconds(lambda: copy(int(np.mean(sizes))))[0])
    return {"examples_per_s": rates, "bytes_per_batch": float(np.mean(sizes))}


def keep_memory() -> None:
    """Lets the C library keep freed memory, as Arrow's pool does by itself and as a process does that has run a while.

    Else each batch's arrays come as new pages from the system, which takes longer than to fill them.
    """
    with contextlib.suppress(OSError, AttributeError):  # not everywhere glibc
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="keep the data set here and use it again")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)) / "log"
        world = World(options.users, options.examples, 700)
        if not folder.exists():
            build(world.source(), folder, lambda *_: None)
        data = Dataset.open(folder)
        lengths = data.history_lengths(np.arange(data.num_examples), WINDOW)
        report: dict[str, Any] = {"examples": data.num_examples, "events": data.num_events, "window": WINDOW}
        report |= {"users": options.users, "mean_history": float(lengths.mean()), "shards": len(data.shards)}
        report["bytes"] = {"log": log_bytes(data)}
        for compression in ("zstd", "snappy"):
            path = folder.parent / f"rows-{compression}.parquet"
            if not path.exists():
                write_rows(data, path, compression)
            report["bytes"][f"parquet_{compression}"] = path.stat().st_size
        report |= measure(data, folder.parent / "rows-snappy.parquet")
    rates = {name: float(np.median(values)) for name, values in report["examples_per_s"].items()}
    report["median_examples_per_s"] = rates
    report["ratios"] = {
        "bytes_snappy": report["bytes"]["parquet_snappy"] / report["bytes"]["log"],
        "bytes_zstd": report["bytes"]["parquet_zstd"] / report["bytes"]["log"],
        "columns_against_parquet": rates["log_columns"] / rates["parquet_rows"],
        "batches_against_parquet": rates["log_batches"] / rates["parquet_rows"],
        "columns_against_copy": rates["log_columns"] / rates["copy"],
    }
    report["target"] = {"bytes_snappy": 10, "columns_against_parquet": 5}
    report["environment"] = describe_environment()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: report[k] for k in ("mean_history", "bytes", "median_examples_per_s", "ratios")}, indent=2))


if __name__ == "__main__":
    main()
