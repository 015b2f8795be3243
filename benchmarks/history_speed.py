"""Encoders of histories against their length: one layer alone, and the whole training step of the model.

    OMP_NUM_THREADS=1 python benchmarks/history_speed.py layer
    OMP_NUM_THREADS=1 python benchmarks/history_speed.py step

`layer`: forward and backward of one encoder, D 64, 4 heads, 8 histories of log-normal lengths (mean T / 4, at most T,
the longest T), one thread. Each encoder runs in a process of its own, in turn; the least and the median of the times,
and how far its memory rose. Full attention stands three times: padded to the longest of the batch, history by history
without any padding, and in buckets of about one length (`sequence=transformer`).

`step`: forward, loss and backward of the default model on `data=adsworld` (width 32, two blocks), embeddings and their
update included, with the encoder exchanged; 16 requests, histories of at most T events.

Writes benchmarks/results/history_speed_layer.json and history_speed_step.json.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import measure
import numpy as np
import torch
from gemkit_baselines.sequence import buckets
from gemkit_baselines.sequence.transformer import Transformer
from torch import Tensor
from torch.nn import functional as F

from gemkit.config.compose import compose
from gemkit.data.collate import collate, plain_layout
from gemkit.interfaces import Events
from gemkit.nn.attention import rotate, turns
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.runs.progress import Progress
from gemkit.session import build_model, open_dataset, reading_of
from gemkit.testing import bench

LENGTHS = (512, 1024, 2048, 4096, 8192)
DIM, HEADS, HISTORIES = 64, 4, 8
ENCODERS: dict[str, dict[str, Any]] = {
    "padded": {"name": "transformer"},
    "loop": {"name": "transformer"},
    "transformer": {"name": "transformer"},
    "hstu": {"name": "hstu"},
    "sliding_window": {"name": "sliding_window"},
    "blocks": {"name": "blocks"},
    "pyramid": {"name": "pyramid", "chunk_sizes": (64, 16)},
}
"""`pyramid` has three levels: chunks of 64 events, chunks of 16 summaries, and the top."""


def one_by_one(self: Transformer, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
    """Full attention, history after history: no padding and no mask."""
    mixed, mixed_cls = [], []
    for u, own in enumerate(qkv.split(events.offsets.diff().tolist())):
        rows = torch.cat([own, cls[u]]).view(1, -1, 3, self.num_heads, own.shape[-1] // 3 // self.num_heads)
        q, k, v = rows.unbind(2)
        turn = turns(rows.shape[1], q.shape[-1] // 2, q.device)
        heads = (x.transpose(1, 2) for x in (rotate(q, turn), rotate(k, turn), v))
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)[0]
        mixed.append(out[: own.shape[0]])
        mixed_cls.append(out[own.shape[0] :])
    return torch.cat(mixed), torch.stack(mixed_cls)


@contextmanager
def arranged(name: str) -> Iterator[None]:
    """Full attention as `name` arranges it."""
    ratio, attend = buckets.RATIO, Transformer.attend
    if name == "padded":
        buckets.RATIO = 0.0
    if name == "loop":
        Transformer.attend = one_by_one  # type: ignore[method-assign]
    try:
        yield
    finally:
        buckets.RATIO, Transformer.attend = ratio, attend  # type: ignore[method-assign]


def log_normal(longest: int, seed: int) -> np.ndarray:
    """Lengths of histories: log-normal with mean T / 4, one of them T."""
    drawn = np.random.default_rng(seed).lognormal(math.log(longest / 4) - 0.5, 1.0, HISTORIES)
    lengths = np.clip(drawn.round(), 1, longest).astype(np.int64)
    lengths[0] = longest
    return lengths


def repeated(work: Callable[[], Any], seconds: float = 4.0, least: int = 3) -> list[float]:
    """Times of `work`, at least `least` and for about `seconds`, after a first that does not count."""
    work()
    times: list[float] = []
    start = time.process_time()
    while len(times) < least or (time.process_time() - start < seconds and len(times) < 30):
        times.append(measure.cpu_s(work))
    return times


def layer_times(name: str, longest: int, seed: int) -> list[float]:
    """Times of one encoder layer, forward and backward."""
    registry = load_registry()
    config = {**ENCODERS[name], "num_heads": HEADS}
    module = registry.build("sequence", config, bench.context(dim=DIM))
    init_parameters(module, 1)
    lengths = log_normal(longest, seed)
    total = int(lengths.sum())
    values = torch.randn(total, DIM, requires_grad=True)
    events = Events(
        values=values,
        offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))),
        ages=torch.rand(total) * 1e6,
        stream=torch.zeros(total, dtype=torch.int64),
        cls=torch.randn(HISTORIES, 4, DIM),
        owner=torch.randn(HISTORIES, 1, DIM),
        history_index=torch.arange(HISTORIES),
        layout=plain_layout(lengths)._replace(plan=module.plan(lengths)),
    )
    query = torch.randn(HISTORIES, 2, DIM)

    def once() -> None:
        module.zero_grad(set_to_none=True)
        values.grad = None
        module(events, query).values.sum().backward()

    return repeated(once)


def layers(rounds: int) -> dict[str, Any]:
    """Every encoder at every length, each in a process of its own."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in ENCODERS}
    for longest in LENGTHS:
        found: dict[str, list[tuple[list[float], int]]] = {name: [] for name in ENCODERS}
        for seed in range(rounds):
            for name in ENCODERS:
                with arranged(name):
                    gc.collect()
                    found[name].append(measure.in_a_process(lambda n=name, t=longest, s=seed: layer_times(n, t, s)))
        for name, runs in found.items():
            rows[name][str(longest)] = {
                "least_ms": 1e3 * min(min(times) for times, _ in runs),
                "median_ms": 1e3 * statistics.median(statistics.median(times) for times, _ in runs),
                "by_round_ms": [1e3 * statistics.median(times) for times, _ in runs],
                "memory_mb": statistics.median(memory for _, memory in runs) / 1e6,
            }
            print(f"T {longest:5}  {name:15} {rows[name][str(longest)]['median_ms']:10.1f} ms")
    return rows


def exponent(rows: dict[str, Any], start: int = 1024) -> float:
    """Slope of log time against log length."""
    points = [(math.log(int(t)), math.log(row["median_ms"])) for t, row in rows.items() if int(t) >= start]
    return float(np.polyfit(*np.array(points).T, 1)[0])


def step_times(name: str, longest: int) -> list[float]:
    """Times of one training step without the dense optimiser."""
    registry = load_registry()
    words = [f"sequence={ENCODERS[name]['name']}"]
    words += [f"sequence.{key}={list(value)}" for key, value in ENCODERS[name].items() if key != "name"]
    world = ["data=adsworld", "data.num_users=200", "data.mean_history=4000", f"data.max_history={longest}"]
    run = compose([*world, "parallel.accelerator=cpu", *words], registry)
    dataset = open_dataset(run, registry, Progress(quiet=True))
    backend = registry.build("parallel", run.parallel)
    backend.launch(run)
    model = build_model(run, dataset.schema, registry, backend)
    train = dataset.split("train")
    keys = dataset.history_keys(train)
    chosen = np.random.default_rng(1).choice(np.unique(keys), 16, replace=False)
    batch = collate(dataset, train[np.isin(keys, chosen)], reading_of(run, model.dense))

    def once() -> None:
        model.dense.zero_grad(set_to_none=True)
        model.dense.head.loss(model(batch).scores, batch).backward()

    return repeated(once)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layer", "step"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "layer":
        bench.dataset()  # made once, not in every process
        rows = layers(options.rounds)
        last = str(LENGTHS[-1])
        pyramid = rows["pyramid"]

        def times(name: str) -> float:
            return measure.median_ratio(rows[name][last]["by_round_ms"], pyramid[last]["by_round_ms"])

        report = {
            "setting": {"dim": DIM, "heads": HEADS, "histories": HISTORIES, "threads": 1, "rounds": options.rounds},
            "encoders": rows,
            "exponent_from_1024": {name: exponent(found) for name, found in rows.items()},
            "pyramid_at_longest": {
                "times_faster_than": {name: times(name) for name in rows if name != "pyramid"},
                "memory_of_padded": pyramid[last]["memory_mb"] / rows["padded"][last]["memory_mb"],
            },
        }
    else:
        rows = {}
        for name in ("padded", "loop", "transformer", "pyramid"):
            rows[name] = {}
            for longest in LENGTHS[1:]:
                with arranged(name):
                    times_s, memory = measure.in_a_process(lambda n=name, t=longest: step_times(n, t))
                median = statistics.median(times_s)
                rows[name][str(longest)] = {
                    "least_ms": 1e3 * min(times_s),
                    "median_ms": 1e3 * median,
                    "memory_mb": memory / 1e6,
                }
                print(f"T {longest:5}  {name:15} {1e3 * median:10.1f} ms")
        last = str(LENGTHS[-1])
        report = {
            "encoders": rows,
            "exponent_from_1024": {name: exponent(found) for name, found in rows.items()},
            "pyramid_at_longest": {
                name: found[last]["median_ms"] / rows["pyramid"][last]["median_ms"] for name, found in rows.items()
            },
        }
    measure.write(f"history_speed_{options.what}", {**report, **measure.machine()})


if __name__ == "__main__":
    main()
