"""Each effect of the synthetic ads world alone, with a plain model that can see it and one that cannot.

    python benchmarks/adsworld_switches.py            # all switches, five worlds each
    python benchmarks/adsworld_switches.py order pair # these rows again; the others of the stored file stay
    python benchmarks/adsworld_switches.py --table    # the table of docs/adsworld.md, from the stored file
    python benchmarks/adsworld_switches.py --speed    # measures only the generator's speed and memory, into the file

A switch's world has this effect at strength 1 and no other. The models are logistic regressions on all features with,
where the table says so, one more term; they read the generator's tables, no dataset folder. Seeds are worlds: both
models of a seed see the same world and the same batches. Results: benchmarks/results/adsworld_switches.json, with test
NE (base rate of the training split), its floor, the share of the learnable signal, and the paired difference in NE with
its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import platform
import resource
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from gemkit_adsworld.config import EFFECTS, AdsWorldConfig
from gemkit_adsworld.events import BLOCK_USERS, COMPARE, PRICE_CHECK, RESEARCH, SEARCH, STREAMS, make_events, make_users
from gemkit_adsworld.tables import event_tables, example_block, example_tables, make_impressions
from gemkit_adsworld.world import DAY_S, START_S, World
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.metrics import functional as M
from gemkit.metrics.floor import floor, learned

RESULT = Path(__file__).resolve().parent / "results" / "adsworld_switches.json"
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5 % quantile, by degrees of freedom."""
SIZE = {"num_users": 5120, "num_items": 5000, "num_advertisers": 100, "examples_per_user": 24.0}
EPOCHS, BATCH, PATIENCE = 30, 2048, 4
WINDOWS = {"newest 20": 20, "newest 200": 200, "all": 10**9}
FIELDS = ("surface", "position", "hour", "weekday", "country", "age", "gender", "device", "plan")
ITEM_FIELDS = ("topic", "vertical", "format", "price", "advertiser")

SWITCHES: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "interest": (("features only", {}), ("+ topics of the newest 20 events x ad's topic", {"bag": "topic newest 20"})),
    "pair": (("features one by one", {}), ("factorization machine", {"fm": True})),
    "quad": (("factorization machine", {"fm": True}), ("MLP", {"mlp": True})),
    "old_events": (
        ("bag of the newest 20 events x ad's topic", {"bag": "intent newest 20"}),
        ("bag of all events x ad's topic", {"bag": "intent all"}),
    ),
    "ancient_events": (
        ("bag of the newest 200 events x ad's topic", {"bag": "intent newest 200"}),
        ("bag of all events x ad's topic", {"bag": "intent all"}),
    ),
    "order": (
        ("bag of all events", {"plain": "streams"}),
        ("bag of all events + newest step of a journey", {"plain": "streams and newest step"}),
    ),
    "event_x_user": (
        ("topics of the newest 20 events x ad's topic", {"bag": "topic newest 20"}),
        ("the same x plan", {"bag": "topic newest 20", "by_plan": True}),
    ),
    "event_pair_x_user": (
        ("topics and surfaces of the newest 20 events, apart, x ad's topic x plan", {"bag": "apart", "by_plan": True}),
        ("topics by surface x ad's topic x plan", {"bag": "topic by surface newest 20", "by_plan": True}),
    ),
    "shared": (("without the content vector", {}), ("one weight vector on the content", {"content": 1})),
    "private": (
        ("one weight vector on the content", {"content": 1}),
        ("a weight vector for each surface", {"content": "surfaces"}),
    ),
    "drift": (
        ("trained on the first 3 days", {"days": (0, 3)}),
        ("trained on the newest 3 days", {"days": (-3, None)}),
    ),
}


class Data:
    """A world's impressions as tensors: features, histories in bags, labels and truth."""

    def __init__(self, config: AdsWorldConfig) -> None:
        self.world = world = World(config)
        blocks = range(-(-config.num_users // BLOCK_USERS))
        parts = [_block(world, block) for block in blocks]
        self.arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        item = self.arrays["item"]
        advertiser = world.item_advertiser[item]
        self.arrays |= {"topic": world.item_topic[item], "format": world.item_format[item]}
        self.arrays |= {"price": world.item_price[item], "advertiser": advertiser}
        self.arrays |= {"vertical": world.vertical[advertiser], "content": world.content[item]}
        self.day = (self.arrays["timestamp"] - START_S) / DAY_S
        self.tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in self.arrays.items()}
        fields = np.stack([self.arrays[name].astype(np.int64) for name in (*FIELDS, *ITEM_FIELDS)], axis=1)
        sizes = fields.max(0) + 1
        self.num_ids = int(sizes.sum())
        self.tensors["ids"] = torch.from_numpy(fields + np.concatenate([[0], np.cumsum(sizes)[:-1]]))
        days = config.days
        self.train = np.flatnonzero(self.day < 0.8 * days)
        self.valid = np.flatnonzero((self.day >= 0.8 * days) & (self.day < 0.9 * days))
        self.test = np.flatnonzero(self.day >= 0.9 * days)


def _block(world: World, block: int) -> dict[str, np.ndarray]:
    users = make_users(world, block)
    events = make_events(world, users)
    seen = make_impressions(world, users, events)
    table = example_block(world, block)
    span = 1 << 34
    end = np.searchsorted(events.owner * span + events.time_s, seen.owner * span + seen.time_s)
    start, topics, surfaces = events.starts[seen.owner], world.config.num_topics, len(world.surface_names)
    topic, about = world.item_topic[events.item], events.item >= 0
    kinds = {
        "topic": (np.where(about, topic, -1), topics),
        "surface": (np.where(about, events.surface, -1), surfaces),
        "topic by surface": (np.where(about, topic * surfaces + events.surface, -1), topics * surfaces),
        "intent": (
            np.where(events.intent >= 0, (events.stream - SEARCH).astype(np.int64) * topics + events.intent, -1),
            (len(STREAMS) - SEARCH) * topics,
        ),
        "stream": (events.stream, len(STREAMS)),
    }
    found: dict[str, np.ndarray] = {}
    for name, (codes, size) in kinds.items():
        one_hot = np.zeros((len(codes) + 1, size), np.float32)
        rows = np.flatnonzero(codes >= 0)
        one_hot[rows + 1, codes[rows]] = 1
        summed = np.cumsum(one_hot, axis=0, dtype=np.float32)
        for window, length in WINDOWS.items():
            if name not in ("intent", "stream") and length > 20:
                continue
            counts = summed[end] - summed[np.maximum(start, end - length)]
            found[f"{name} {window}"] = counts / np.maximum(1, counts.sum(1, keepdims=True))
    found["apart"] = np.concatenate([found["topic newest 20"], found["surface newest 20"]], axis=1)
    steps = np.flatnonzero(np.isin(events.stream, (RESEARCH, COMPARE, PRICE_CHECK)))
    newest = np.searchsorted(steps, end) - 1
    newest_event = steps[np.maximum(newest, 0)]
    has = (newest >= 0) & (newest_event >= start)
    kind = np.where(has, events.stream[newest_event] - RESEARCH, 3)
    found["streams"] = found["stream all"]
    found["streams and newest step"] = np.concatenate([found["streams"], np.eye(4, dtype=np.float32)[kind]], axis=1)
    for name in FIELDS:
        column = table[name]
        codes = column.combine_chunks()
        found[name] = (codes.indices if hasattr(codes, "indices") else codes).to_numpy(zero_copy_only=False)
    for name in ("item", "timestamp", "click", "click_truth"):
        found[name] = table[name].to_numpy()
    return found


class Model(nn.Module):
    """Logistic regression on all features, and the terms that a switch's row names."""

    def __init__(self, data: Data, terms: dict[str, Any]) -> None:
        super().__init__()
        self.terms = terms
        topics, num_fields = data.world.config.num_topics, len(FIELDS) + len(ITEM_FIELDS)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.linear = nn.Embedding(data.num_ids, 1)
        nn.init.zeros_(self.linear.weight)
        if "fm" in terms or "mlp" in terms:
            self.embedding = nn.Embedding(data.num_ids, 16)
            nn.init.normal_(self.embedding.weight, std=0.1)
        if "mlp" in terms:
            width = num_fields * 16
            self.mlp = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        if "bag" in terms:
            size = data.tensors[terms["bag"]].shape[1]
            self.bag = nn.Parameter(torch.zeros(2 if "by_plan" in terms else 1, topics, size))
        if "plain" in terms:
            self.plain = nn.Linear(data.tensors[terms["plain"]].shape[1], 1)
        if "content" in terms:
            surfaces = len(data.world.surface_names) if terms["content"] == "surfaces" else 1
            self.content = nn.Parameter(torch.zeros(surfaces, data.arrays["content"].shape[1]))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        terms, ids = self.terms, batch["ids"]
        logit = self.bias + self.linear(ids).sum((1, 2))
        if "fm" in terms:
            vectors = self.embedding(ids)
            logit = logit + (vectors.sum(1).square() - vectors.square().sum(1)).sum(1) / 2
        if "mlp" in terms:
            logit = logit + self.mlp(self.embedding(ids).flatten(1)).squeeze(1)
        if "bag" in terms:
            plan = batch["plan"].long() if "by_plan" in terms else torch.zeros_like(batch["topic"])
            logit = logit + (self.bag[plan, batch["topic"]] * batch[terms["bag"]]).sum(1)
        if "plain" in terms:
            logit = logit + self.plain(batch[terms["plain"]]).squeeze(1)
        if "content" in terms:
            surface = batch["surface"].long() if len(self.content) > 1 else torch.zeros_like(batch["topic"])
            logit = logit + (self.content[surface] * batch["content"]).sum(1)
        return logit


def fit(data: Data, terms: dict[str, Any], seed: int) -> float:
    """Test logloss of the epoch that is best on the valid split."""
    torch.manual_seed(seed)
    train = data.train
    if "days" in terms:
        first, last = terms["days"]
        end = 0.8 * data.world.config.days
        low, high = (end + first, end) if first < 0 else (first, last)
        train = train[(data.day[train] >= low) & (data.day[train] < high)]
    model = Model(data, terms)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002 if "mlp" in terms else 0.01)
    names = {"ids", "topic", "plan", "surface", "content", "click"} | {terms[k] for k in ("bag", "plain") if k in terms}
    rng, best, test, waited = np.random.default_rng(seed), float("inf"), float("nan"), 0

    def logits(rows: np.ndarray) -> Tensor:
        with torch.no_grad():
            pieces = np.array_split(rows, max(1, len(rows) // 8192))
            return torch.cat([model({n: data.tensors[n][piece] for n in names}) for piece in pieces])

    def loss_of(rows: np.ndarray) -> float:
        loss = M.logloss(logits(rows), data.tensors["click"][rows])
        assert loss is not None
        return loss

    for _ in range(EPOCHS):
        rows = rng.permutation(train)
        for begin in range(0, len(rows), BATCH):
            batch = {n: data.tensors[n][rows[begin : begin + BATCH]] for n in names}
            loss = F.binary_cross_entropy_with_logits(model(batch), batch["click"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        valid = loss_of(data.valid)
        waited += 1
        if valid < best:
            best, test, waited = valid, loss_of(data.test), 0
        if waited >= PATIENCE:
            break
    return test


def measure(switch: str, seed: int) -> dict[str, Any]:
    """Both models of a switch in the world of a seed."""
    config = AdsWorldConfig(seed=seed, **SIZE, **dict.fromkeys(EFFECTS, 0.0) | {switch: 1.0})
    data = Data(config)
    rate = float(data.arrays["click"][data.train].mean())
    best = floor(data.arrays["click_truth"][data.test], data.arrays["click"][data.test], base_rate=rate)
    result: dict[str, Any] = {"floor": best, "train_examples": len(data.train)}
    for key, (_, terms) in zip(("cannot", "can"), SWITCHES[switch], strict=True):
        ne = M.ne(fit(data, terms, seed), rate)
        result[key] = {"ne": ne, "learned": learned(ne, best["ne_floor"])}
    return result


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, and the half-width of its 95 % interval."""
    ci = T_95[len(values) - 1] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"by_seed": values, "mean": mean(values), "ci95": ci}


def summary(switch: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: floor, NE and share of both, and their paired difference."""
    cannot, can = SWITCHES[switch]
    return {
        "click_rate": mean(run["floor"]["base_rate"] for run in runs),
        "ne_floor": spread([run["floor"]["ne_floor"] for run in runs]),
        "auc_best": spread([run["floor"]["auc_best"] for run in runs]),
        **{
            key: {
                "model": name,
                "ne": spread([run[key]["ne"] for run in runs]),
                "learned": spread([run[key]["learned"] for run in runs]),
            }
            for key, (name, _) in (("cannot", cannot), ("can", can))
        },
        "ne_difference": spread([run["can"]["ne"] - run["cannot"]["ne"] for run in runs]),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| switch | floor of NE | cannot see it | NE | learned | can see it | NE | learned | difference in NE |"]
    lines.append("|---" * 9 + "|")
    for switch, row in report["switches"].items():
        cells = [f"`{switch}`", f"{row['ne_floor']['mean']:.4f}"]
        for key in ("cannot", "can"):
            cells += [row[key]["model"], f"{row[key]['ne']['mean']:.4f}", f"{row[key]['learned']['mean']:.0%}"]
        difference = row["ne_difference"]
        interval = "" if difference["ci95"] is None else f" ± {difference['ci95']:.4f}"
        lines.append("| " + " | ".join([*cells, f"{difference['mean']:+.4f}{interval}"]) + " |")
    return "\n".join(lines)


def speed(num_users: int) -> dict[str, Any]:
    """Rows a second of CPU time, and the peak memory of a process that does nothing else."""
    found: dict[str, Any] = {"num_users": num_users}
    world = World(AdsWorldConfig(num_users=num_users))
    for name, tables in (("events", event_tables), ("examples", example_tables)):
        begin = time.process_time()
        rows = sum(table.num_rows for table in tables(world))
        found |= {name: rows, f"{name}_per_s": rows / (time.process_time() - begin)}
    return found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def speeds() -> list[dict[str, Any]]:
    """Of a small and a large world, each in a process of its own."""
    found = []
    for num_users in (5_000, 50_000):
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(speed, num_users).result())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("switches", nargs="*", help=f"rows to measure again, of {', '.join(SWITCHES)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--table", action="store_true", help="print the stored table")
    parser.add_argument("--speed", action="store_true", help="measure only the generator's speed")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
        return
    if options.speed:
        report = json.loads(RESULT.read_text(encoding="utf-8")) | {"speed": speeds()}
        RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(report["speed"], indent=2))
        return
    torch.set_num_threads(1)
    setting = {"seeds": options.seeds, "world": SIZE, "torch": torch.__version__, "machine": platform.machine()}
    report: dict[str, Any] = {**setting, "switches": {}}
    if unknown := set(options.switches) - set(SWITCHES):
        parser.error(f"no switch is called {', '.join(sorted(unknown))}; there are {', '.join(SWITCHES)}")
    if options.switches:
        stored = json.loads(RESULT.read_text(encoding="utf-8"))
        if any(stored[key] != value for key, value in setting.items()):
            parser.error(f"{RESULT.name} was measured otherwise: a selection cannot stand beside it; run all switches")
        report = stored
    for switch in options.switches or SWITCHES:
        begin = time.perf_counter()
        report["switches"][switch] = summary(switch, [measure(switch, seed) for seed in options.seeds])
        print(table({"switches": {switch: report["switches"][switch]}}).splitlines()[-1], flush=True)
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    report["switches"] = {switch: report["switches"][switch] for switch in SWITCHES if switch in report["switches"]}
    if not options.switches:
        report["speed"] = speeds()
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(RESULT)


if __name__ == "__main__":
    main()
