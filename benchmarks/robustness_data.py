"""Damages data on purpose, many times, and checks that each damage is refused clearly or read correctly.

    python benchmarks/robustness_data.py --count 500 --seed 1

What "correctly" means is decided without gemkit's readers: Python's `csv` module or pyarrow read the damaged file, and
every value of the data set that gemkit built from it is compared with what stands there. A damaged dataset folder must
be refused or hold what the sound one holds. With forged hashes it must be refused, or every id that a batch carries
must be a row of its table.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import io
import json
import math
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from gemkit_datasets.table import TableConfig, TableRecipe

from gemkit.component import spec_of
from gemkit.config.fields import from_mapping
from gemkit.config.run import LoaderConfig
from gemkit.data import storage
from gemkit.data.collate import Reading
from gemkit.data.dataset import Dataset
from gemkit.data.encode import encode_examples
from gemkit.data.histories import gather, newest
from gemkit.data.loader import Loader
from gemkit.data.prepare import prepare
from gemkit.data.verify import STAMP
from gemkit.errors import GemkitError
from gemkit.predict import read_examples
from gemkit.testing import fuzz

RESULT = Path(__file__).parent / "results" / "robustness_data.json"
READ, REFUSED, DEFECT = "read correctly", "refused", "defect"
DECLARED: dict[str, Any] = {
    "categorical": [{"name": "user"}, {"name": "item"}, {"name": "tags", "multi": True}],
    "dense": [{"name": "price"}],
    "vectors": [{"name": "look"}],
    "event_fields": [{"name": "item"}],
    "tasks": [{"name": "click"}, {"name": "buy", "masked_by": "click"}],
    "user": "user", "timestamp": "time", "stream": "kind", "surface": "surface", "weight": "weight",
    "example_id": "id", "group": "user", "split": {"by": "column", "column": "part"},
}  # fmt: skip

READ_COLUMNS = {
    "id",
    "user",
    "item",
    "tags",
    "price",
    "look",
    "click",
    "buy",
    "weight",
    "surface",
    "part",
    "time",
    "kind",
}

Row = dict[str, Any]


def sound_rows(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Sixty examples and ninety events of seven users; one has no events, and times have ties."""
    items, tags = [f"item{i}" for i in range(8)] + ["café", "01060"], ["a", "b", "ç", "d e"]
    examples = [
        {
            "id": 1000 + i, "user": f"u{rng.randrange(7)}", "item": rng.choice(items),
            "tags": rng.sample(tags, rng.randrange(4)), "price": round(rng.uniform(-5, 50), 2),
            "look": [round(rng.uniform(-1, 1), 3) for _ in range(3)], "click": int(rng.random() < 0.5),
            "buy": rng.choice((0, 1, None)), "weight": rng.choice((0.5, 1.0, 2.0)),
            "surface": rng.choice(("feed", "stories")), "part": ("train", "train", "train", "valid", "test")[i % 5],
            "time": 1_767_571_200 + 600 * rng.randrange(200), "unused": "résumé",
        }
        for i in range(60)
    ]  # fmt: skip
    events = [
        {"user": f"u{rng.randrange(6)}", "item": rng.choice(items), "kind": rng.choice(("view", "buy")),
         "time": 1_767_571_200 + 600 * rng.randrange(-100, 200)}
        for _ in range(90)
    ]  # fmt: skip
    return examples, events


# --- the files, and what is read from them without gemkit ----------------------------------------------------


def as_csv(rows: list[Row], dates: bool) -> bytes:
    """Rows as CSV; lists parted by ``|``, times as dates if asked."""

    def cell(name: str, value: Any) -> str:
        if isinstance(value, list):
            return "|".join(map(str, value))
        if name == "time" and dates:
            return str(datetime.datetime.fromtimestamp(value, datetime.UTC).replace(tzinfo=None))
        return "" if value is None else str(value)

    return fuzz.written([list(rows[0]), *([cell(n, v) for n, v in row.items()] for row in rows)])


def as_table(rows: list[Row]) -> pa.Table:
    """Rows as a typed table."""
    return pa.table({name: pa.array([row[name] for row in rows]) for name in rows[0]})


def rows_of(path: Path) -> list[Row]:
    """What a file holds, by Python's csv module or pyarrow's plainest readers."""
    if ".csv" in path.name:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8-sig", "surrogateescape")
        names, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
        assert all(len(row) == len(names) for row in rows), "rows of unequal length"
        return [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        table = pyarrow.parquet.ParquetFile(path).read(columns=sorted(READ_COLUMNS))
    else:
        table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
    names = [name for name in table.column_names if name in READ_COLUMNS]
    columns = [cells_of(table.column(name)) for name in names]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def cells_of(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values; datetime has no nanoseconds, so those become seconds."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return [None if cell.value is None else cell.value / 1e9 for cell in column]
    return list(column.to_pylist())


def number(cell: Any) -> float | None:
    """A number, or None for an empty cell."""
    return None if cell is None or cell == "" else float(cell)


def ident(cell: Any) -> str | None:
    """A category as text, or None for an empty cell."""
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float):
        return str(int(cell))
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def many(cell: Any) -> list[Any]:
    """The entries of a list, or of text that stands for one."""
    if isinstance(cell, str):
        return [part.strip() for part in cell.split("|")] if cell else []
    return list(cell or [])


def seconds(cell: Any) -> int:
    """Seconds since 1970, rounded down."""
    if isinstance(cell, str):
        try:
            return math.floor(float(cell))
        except ValueError:
            cell = datetime.datetime.fromisoformat(cell.strip())
    if isinstance(cell, datetime.date) and not isinstance(cell, datetime.datetime):
        cell = datetime.datetime.combine(cell, datetime.time())
    if isinstance(cell, datetime.datetime):
        zoned = cell if cell.tzinfo else cell.replace(tzinfo=datetime.UTC)
        return math.floor((zoned - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds())
    return math.floor(cell)


def differences(examples: list[Row], events: list[Row], data: Dataset, labels: bool) -> Iterator[str]:
    """Where a data set does not hold what the rows say; `labels`: of a built one, not of rows to predict."""
    if data.num_examples != len(examples):
        yield f"{data.num_examples} examples, the file has {len(examples)}"
        return
    log: dict[str | None, list[tuple[int, str | None, str | None]]] = defaultdict(list)
    for event in events:
        log[ident(event["user"])].append((seconds(event["time"]), ident(event["item"]), ident(event["kind"])))
    histories = []
    for row in examples:
        mine = sorted((e for e in log[ident(row["user"])] if e[0] < seconds(row["time"])), key=lambda e: e[0])
        histories.append(mine)
    train = [row["part"] == "train" if labels else False for row in examples]
    known = {name: {ident(r[name]) for r, t in zip(examples, train, strict=True) if t} for name in ("user", "item")}
    known["tags"] = {ident(v) for r, t in zip(examples, train, strict=True) if t for v in many(r["tags"])}
    known["item"] |= {e[1] for h, t in zip(histories, train, strict=True) if t for e in h}
    texts = {name: [None, *data.vocabulary(name)] for name in known}
    if not labels:
        known = {name: set(values) for name, values in texts.items()}
    elif any(set(texts[name]) != known[name] | {None} for name in known):
        yield "a vocabulary is not that of the training split"
    # A built data set is sorted; rows to predict keep their order, and may have an id twice.
    ids = np.asarray(data.columns[storage.EXAMPLE_ID]).tolist()
    places = {number: place for place, number in enumerate(ids)}
    for i, row in enumerate(examples):
        if labels and int(row["id"]) not in places:
            yield f"row {i + 1} is missing"
            return
        wanted: dict[str, Any] = {
            "id": int(row["id"]), "time": seconds(row["time"]), "surface": ident(row["surface"]),
            "price": number(row["price"]), "look": [number(v) for v in many(row["look"])],
            "tags": [v if v in known["tags"] else None for v in map(ident, many(row["tags"])) if v is not None],
            "history": [(t, k if k in known["item"] else None, kind) for t, k, kind in histories[i]],
        }  # fmt: skip
        wanted |= {n: ident(row[n]) if ident(row[n]) in known[n] else None for n in ("user", "item")}
        if labels:
            click, buy = (
                None if v is None or math.isnan(v) else int(v) for v in map(number, (row["click"], row["buy"]))
            )
            wanted |= {"click": click, "buy": buy if click == 1 else None, "part": row["part"]}
            wanted["weight"] = number(row["weight"])
        found = held(data, places[int(row["id"])] if labels else i, texts)
        for name, value in wanted.items():
            if not same(found[name], value):
                yield f"row {i + 1}, {name}: {found[name]!r}, the file has {value!r}"


def held(data: Dataset, i: int, texts: dict[str, list[Any]]) -> Row:
    """Row i of a data set, decoded."""
    columns, row = data.columns, np.array([i])
    parts = data.located(row)
    tags, _ = data.take_bags("tags", parts, 1)
    windows = newest(data, row, 10**6)
    log = zip(*(gather(data, n, windows).tolist() for n in (storage.TIMESTAMP, "item", storage.STREAM)), strict=True)
    label = {name: int(columns[name][i]) if columns[name][i] >= 0 else None for name in ("click", "buy")}
    return label | {
        "id": int(columns[storage.EXAMPLE_ID][i]), "time": int(columns[storage.TIMESTAMP][i]),
        "surface": data.schema.surfaces[columns[storage.SURFACE][i]], "price": float(columns["price"][i]),
        "look": data.take_vectors("look", parts, 1)[0].tolist(), "weight": float(columns[storage.WEIGHT][i]),
        "tags": [texts["tags"][t] for t in tags],
        "history": [(t, texts["item"][k], data.schema.streams[s]) for t, k, s in log],
        "user": texts["user"][columns["user"][i]], "item": texts["item"][columns["item"][i]],
        "part": ("train", "valid", "test")[columns[storage.SPLIT][i]],
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal; numbers as near as float32 is."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30)
    return bool(a == b)


# --- the trials -----------------------------------------------------------------------------------------------


class Trials:
    """Damages and judges; `folder` is for the files."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.examples, self.events = sound_rows(self.rng)
        self.sound = self._write("sound", "examples.csv", as_csv(self.examples, False))
        self.sound_events = self._write("sound", "events.csv", as_csv(self.events, False))
        self.dataset = self._build(self.sound, self.sound_events, folder / "sound")
        self.kinds: dict[str, Callable[[Path], tuple[str, str]]] = {
            "csv examples": lambda p: self._input(p, "examples", "csv"),
            "csv events": lambda p: self._input(p, "events", "csv"),
            "parquet": lambda p: self._input(p, self.rng.choice(("examples", "events")), "parquet"),
            "arrow": lambda p: self._input(p, self.rng.choice(("examples", "events")), "arrow"),
            "csv to predict": self._prediction,
            "folder": self._folder,
            "forged folder": self._forged,
        }

    def trial(self, index: int) -> tuple[str, str, str]:
        """One damage: its class, its kind and outcome, and what is to be said about it."""
        kind = list(self.kinds)[index % len(self.kinds)]
        place = self.folder / f"trial{index}"
        place.mkdir()
        self.damage = "?"
        try:
            outcome, said = self.kinds[kind](place)
        except GemkitError as error:
            outcome, said = REFUSED, str(error)
            if not error.where or len(error.what) > 400 or self.damage in fuzz.HARMLESS:
                outcome = DEFECT
        except Exception:
            outcome, said = DEFECT, traceback.format_exc(limit=-4)
        left = [p.name for p in (place / "datasets").glob("*") if ".tmp-" in p.name or ".old-" in p.name]
        if left:
            outcome, said = DEFECT, f"left behind: {left}"
        if outcome != DEFECT:
            shutil.rmtree(place)
        return kind, f"{self.damage}: {outcome}", said

    def _write(self, place: str, name: str, data: bytes) -> Path:
        path = self.folder / place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def _build(self, examples: Path, events: Path, place: Path) -> Dataset:
        values = DECLARED | {"examples": str(examples), "events": str(events), "root": str(place / "datasets")}
        config = from_mapping(TableConfig, values | {"folder": "d"})
        return prepare(spec_of(TableRecipe), config, lambda *_: None, lambda *_: None)

    def _damaged_input(self, place: Path, which: str, form: str) -> Path:
        rows, rng = self.examples if which == "examples" else self.events, self.rng
        if form == "csv":
            self.damage, data = fuzz.damaged_csv(as_csv(rows, rng.random() < 0.5), rng)
            path = place / f"{which}.csv{'.gz' if self.damage == 'gzip' else ''}"
            if self.damage == "gzip" and rng.random() < 0.7:
                self.damage, data = "gzip bytes", fuzz.damaged_bytes(data, rng)[1]
        else:
            path, table = place / f"{which}.{form}", as_table(rows)
            if rng.random() < 0.5:
                self.damage, table = fuzz.damaged_table(table, rng)
            if form == "parquet":
                pyarrow.parquet.write_table(table, path, write_page_checksum=rng.random() < 0.5)
            else:
                storage.write_table(table, path)
            data = path.read_bytes()
            if self.damage == "?":
                kind, data = fuzz.damaged_bytes(data, rng)
                self.damage = f"bytes: {kind}"
        path.write_bytes(data)
        return path

    def _input(self, place: Path, which: str, form: str) -> tuple[str, str]:
        path = self._damaged_input(place, which, form)
        examples, events = (path, self.sound_events) if which == "examples" else (self.sound, path)
        data = self._build(examples, events, place)
        wrong = next(differences(rows_of(examples), rows_of(events), data, True), None)
        return (DEFECT, wrong) if wrong else (READ, "")

    def _prediction(self, place: Path) -> tuple[str, str]:
        path = self._damaged_input(place, "examples", "csv")
        data = encode_examples(self.dataset, read_examples(path, self.dataset, "|"), path.name)
        wrong = next(differences(rows_of(path), rows_of(self.sound_events), data, False), None)
        return (DEFECT, wrong) if wrong else (READ, "")

    def _copy(self, place: Path) -> Path:
        copy = place / "copy"
        shutil.copytree(self.dataset.folder, copy)
        return copy

    def _folder(self, place: Path) -> tuple[str, str]:
        copy, rng = self._copy(place), self.rng
        Dataset.open(copy)  # a stamp may be there
        file = rng.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
        if rng.random() < 0.1:
            self.damage = "file removed"
            file.unlink()
        else:
            self.damage, data = fuzz.damaged_bytes(file.read_bytes(), rng)
            file.write_bytes(data)
        self.damage += f", {file.name if file.name == STAMP else file.suffix}"
        found = Dataset.open(copy)
        wrong = found.fingerprint != self.dataset.fingerprint or contents(found) != contents(self.dataset)
        return (DEFECT, "another content was served") if wrong else (READ, "")

    def _forged(self, place: Path) -> tuple[str, str]:
        copy = self._copy(place)
        self.damage = fuzz.forge_folder(copy, self.rng)
        data = Dataset.open(copy)
        wrong = next(out_of_bounds(data), None)
        return (DEFECT, wrong) if wrong else ("within bounds", "")


def contents(data: Dataset) -> dict[str, Any]:
    """Everything that a data set serves, ready to be compared."""
    arrays: dict[str, np.ndarray] = {}
    for number, shard in enumerate(data.shards):
        for title, rows in (("examples", shard.examples), ("users", shard.users), ("items", shard.items)):
            if rows is not None:
                pieces = rows.columns | rows.vectors | {n: v for n, (_, v) in rows.bags.items()}
                pieces |= {n + " offsets": o for n, (o, _) in rows.bags.items()}
                arrays |= {f"{number} {title} {n}": a for n, a in pieces.items()}
        arrays |= {f"{number} events {n}": a for n, a in shard.events.items()}
    return {n: a.tobytes() for n, a in arrays.items()} | {
        "schema": data.schema, "rows": data.manifest["rows"], "columns": data.manifest["columns"],
        "texts": [data.vocabulary(t.name) for t in data.schema.tables],
    }  # fmt: skip


def out_of_bounds(data: Dataset) -> Iterator[str]:
    """What batches carry that is no row of its table, or not finite."""
    sizes = {t.name: t.num_embeddings for t in data.schema.tables}
    for split in ("train", "valid", "test"):
        if not len(data.split(split)):
            continue
        for shares in (True, False):
            reading = Reading(shares_histories=shares)
            loader = Loader(data, split, batch_size=7, reading=reading, config=LoaderConfig(workers=0))
            for batch in loader.epoch(0):
                for key, table in data.schema.feature_tables.items():
                    ids = batch.ids[key]
                    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= sizes[table]):
                        yield f"{key} has an id outside its {sizes[table]} rows"
                if not np.isfinite(batch.dense.numpy()).all() or (batch.weights < 0).any():
                    yield "a dense feature is not finite, or a weight is negative"
                if batch.history is not None and (batch.history.ages <= 0).any():
                    yield "an event is not older than its example"


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """`count` trials; counts by class and outcome, and the defects in full."""
    started_s = time.perf_counter()
    trials = Trials(folder, seed)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    outcomes: Counter[str] = Counter()
    defects = []
    for index in range(count):
        kind, outcome, said = trials.trial(index)
        counts[kind][outcome] += 1
        outcomes[outcome.rpartition(": ")[2]] += 1
        if outcome.endswith(DEFECT):
            defects.append({"trial": index, "class": kind, "damage": outcome, "what": said})
    return {
        "seed": seed, "count": count, "wall_s": round(time.perf_counter() - started_s, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "by_class": {kind: dict(sorted(c.items())) for kind, c in sorted(counts.items())},
        "defects": defects,
    }  # fmt: skip


def main() -> int:
    """Runs the trials and writes the result; exit code 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="damages, spread over the classes")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same damages")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the result goes")
    parser.add_argument("--keep", type=Path, help="an empty folder that keeps the files of defects")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(args.count, args.seed, folder)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{result['outcomes']} in {result['wall_s']} s; {len(result['defects'])} defects; {args.output}")
    return 1 if result["defects"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
