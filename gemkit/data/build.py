"""From a `Source` to a dataset folder: encoded examples, one sorted event log, pointers between them.

Whatever is learned from data here (vocabularies, means) is learned from the training split only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit import __version__
from gemkit.config.fields import to_mapping
from gemkit.data import storage
from gemkit.data.arrays import transformed
from gemkit.data.checks import check_declaration
from gemkit.data.columns import Codes, Columns
from gemkit.data.eventlog import EventLog, sort_events
from gemkit.data.fetch import sha256_of
from gemkit.data.schema import DenseFeature, Schema, Table
from gemkit.data.source import SPLITS, Source, Split
from gemkit.data.vocabulary import encode, make_vocabulary
from gemkit.errors import GemkitError

Progress = Callable[[str, int, int], None]


def build(source: Source, folder: Path, progress: Progress, options: dict[str, Any] | None = None) -> None:
    """Writes the dataset folder; it appears complete, or not at all.

    Args:
        progress: Called as (name, steps done, steps in all).
        options: What the source was made with; `manifest.json` keeps it, to tell whether a folder is up to date.

    Raises:
        GemkitError: The declaration contradicts itself, or a column has values that its meaning does not allow.
    """
    steps = itertools.count()

    def step() -> None:
        progress(f"build {source.name}", next(steps), 5)

    check_declaration(source)
    examples = Columns(source.examples, source.examples_title)
    if examples.num_rows == 0:
        raise GemkitError("there are no examples", where=examples.title)
    step()
    timestamp = examples.seconds(source.timestamp) if source.timestamp else np.zeros(examples.num_rows, np.int64)
    split = _split(source.split, examples, timestamp if source.timestamp else None)
    train = split == 0
    step()
    log = sort_events(source, examples, timestamp)
    step()
    categorical, event_fields, vocabularies = _categorical(source, examples, train, log)
    step()
    dense_columns = {f.name: examples.numbers(f.name) for f in source.dense}
    vectors = {f.name: examples.vectors(f.name, f.width) for f in source.vectors}
    surface, surfaces = _names(examples.codes(source.surface, required=True)) if source.surface else (None, ("all",))
    schema = Schema(
        name=source.name,
        tables=tuple(Table(name=name, num_embeddings=v.num_rows + 1) for name, v in vocabularies.items()),
        dense=tuple(_with_statistics(f, dense_columns[f.name][train]) for f in source.dense),
        categorical=tuple(replace(f, table=f.table or f.name) for f in source.categorical),
        vectors=tuple(replace(f, width=vectors[f.name].shape[1]) for f in source.vectors),
        event_fields=tuple(replace(f, table=f.table or f.name) for f in source.event_fields),
        streams=log.streams if log else (),
        tasks=source.tasks,
        surfaces=surfaces,
        group=source.group,
    )
    for f in schema.dense:
        examples.refuse_outliers(f, dense_columns[f.name])
    columns = {
        storage.EXAMPLE_ID: _example_ids(source, examples),
        storage.SPLIT: split,
        storage.TIMESTAMP: timestamp,
        storage.HISTORY: log.history if log else np.arange(examples.num_rows, dtype=np.int64),
        storage.WEIGHT: _weights(source, examples, train),
        storage.SURFACE: np.zeros(examples.num_rows, np.int32) if surface is None else surface,
        storage.GROUP: _groups(source, examples),
        **({storage.HISTORY_START: log.start, storage.HISTORY_END: log.end} if log else {}),
        **_labels(source, examples, train),
        **dense_columns,
        **vectors,
        **categorical,
    }
    step()
    with storage.replacing(folder) as fresh:
        storage.write_table(storage.table_of(columns), fresh / storage.EXAMPLES)
        if log:
            events = {storage.USER: log.user, storage.TIMESTAMP: log.timestamp, storage.STREAM: log.stream}
            storage.write_table(storage.table_of(events | event_fields), fresh / storage.EVENTS)
            storage.write_table(pa.table({"value": log.users}), fresh / storage.USERS)
        for name, vocabulary in vocabularies.items():
            storage.write_table(vocabulary, fresh / storage.VOCABULARIES / f"{name}.arrow")
        storage.write_json(to_mapping(schema), fresh / storage.SCHEMA)
        files = sorted(p for p in fresh.rglob("*") if p.is_file())
        manifest = {
            "format_version": storage.FORMAT_VERSION,
            "name": source.name,
            "gemkit": __version__,
            "rows": {"examples": examples.num_rows, "events": len(log.user) if log else 0}
            | {name: int((split == i).sum()) for i, name in enumerate(SPLITS)},
            "files": {p.relative_to(fresh).as_posix(): sha256_of(p) for p in files},
            "source_files": source.files,
            "options": options or {},
            "columns": {name: getattr(source, name) for name in ("user", "timestamp", "surface", "example_id")},
        }
        storage.write_json(manifest | {"digest": storage.digest_of(manifest)}, fresh / storage.MANIFEST)
    step()


def _split(rule: Split, examples: Columns, timestamp: np.ndarray | None) -> np.ndarray:
    """0 train, 1 valid, 2 test. Shape: (rows,) int8."""
    split = np.zeros(examples.num_rows, np.int8)
    if rule.by == "column":
        names = examples.codes(rule.column, required=True)
        known = np.array([SPLITS.index(v) if v in SPLITS else -1 for v in names.values.to_pylist()], np.int8)
        split = known[names.codes]
        if (split < 0).any():
            raise examples.error(
                rule.column,
                f"unknown split {names.values[int(names.codes[split < 0][0])].as_py()!r}",
                split < 0,
                allowed=", ".join(SPLITS),
            )
        fix = f"give each of {', '.join(SPLITS)} at least one row"
    else:
        assert timestamp is not None  # check_declaration has seen to it
        order = np.sort(timestamp)
        num_test = max(1, round(rule.test * len(order)))
        num_valid = max(1, round(rule.valid * len(order)))
        first_test = order[max(0, len(order) - num_test)]
        first_valid = order[max(0, len(order) - num_test - num_valid)]
        split[timestamp >= first_valid] = 1
        split[timestamp >= first_test] = 2
        fix = "examples of equal timestamp stay together: change `split.valid`/`split.test`, or split by a column"
    for i, name in enumerate(SPLITS):
        if not (split == i).any():
            raise GemkitError(f"the {name} split is empty", where=examples.title, fix=fix)
    return split


def _categorical(
    source: Source, examples: Columns, train: np.ndarray, log: EventLog | None
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, pa.Table]]:
    """Ids of all features, ids of all event fields, and the vocabularies that they share.

    An event is "seen in training" if it is in the history of at least one training example.
    """
    offsets: dict[str, np.ndarray] = {}
    parts: dict[str, list[tuple[Codes, np.ndarray]]] = {}
    features: dict[str, Codes] = {}
    fields: dict[str, Codes] = {}
    for f in source.categorical:
        seen = train
        if f.multi:
            offsets[f.name], features[f.name] = examples.bags(f.name)
            seen = np.repeat(train, np.diff(offsets[f.name]))
        else:
            features[f.name] = examples.codes(f.name)
        parts.setdefault(f.table or f.name, []).append((features[f.name], seen))
    if log:
        seen = log.seen_by(train)
        for e in source.event_fields:
            fields[e.name] = log.codes(e.name)
            parts.setdefault(e.table or e.name, []).append((fields[e.name], seen))
    vocabularies = {table: make_vocabulary(p, source.min_count) for table, p in parts.items()}
    ids: dict[str, Any] = {}
    for f in source.categorical:
        ids[f.name] = encode(features[f.name], vocabularies[f.table or f.name])
        if f.multi:
            ids[f.name] = pa.LargeListArray.from_arrays(offsets[f.name], ids[f.name])
    events = {e.name: encode(fields[e.name], vocabularies[e.table or e.name]) for e in source.event_fields}
    return ids, events, vocabularies


def _with_statistics(feature: DenseFeature, values: np.ndarray) -> DenseFeature:
    values = transformed(values, feature.transform)
    std = float(values.std())
    # A constant column has a rounding error for a standard deviation.
    constant = std <= 1e-12 * max(1.0, abs(float(values.mean())))
    return replace(feature, mean=float(values.mean()), std=1.0 if constant else std)


def _labels(source: Source, examples: Columns, train: np.ndarray) -> dict[str, pa.Array]:
    """Labels that count; empty where they do not, for want of a value or through `masked_by`."""
    raw = {t.name: examples.labels(t.name) for t in source.tasks}
    masks = {t.name: t.masked_by for t in source.tasks}
    columns = {}
    for name, values in raw.items():
        known = values >= 0
        masker = masks[name]
        while masker:
            known = known & (raw[masker] == 1)
            masker = masks[masker]
        if not (known & train).any():
            raise examples.error(name, f"task {name!r} has no label in the train split")
        columns[name] = pa.array(values, pa.int8(), mask=~known)
    return columns


def _names(column: Codes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids from 0 and their names, most frequent first."""
    vocabulary = make_vocabulary([(column, np.ones(len(column.codes), bool))], 1)
    return encode(column, vocabulary) - 1, tuple(vocabulary.column("value").to_pylist())


def _groups(source: Source, examples: Columns) -> np.ndarray:
    if not source.group:
        return np.zeros(examples.num_rows, np.int64)
    return examples.codes(source.group, required=True).codes


def _weights(source: Source, examples: Columns, train: np.ndarray) -> np.ndarray:
    if not source.weight:
        return np.ones(examples.num_rows, np.float32)
    weights = examples.numbers(source.weight)
    if (weights < 0).any():
        raise examples.error(source.weight, "weights are negative", weights < 0, allowed=">= 0")
    weights = weights.astype(np.float32)
    if not weights[train].any():
        raise examples.error(source.weight, "all weights of the train split are 0", allowed="some above 0")
    return weights


def _example_ids(source: Source, examples: Columns) -> np.ndarray:
    if not source.example_id:
        return np.arange(examples.num_rows, dtype=np.int64)
    ids = examples.whole(source.example_id)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        twice = values[counts > 1]
        raise examples.error(source.example_id, f"example id {twice[0]} appears twice", np.isin(ids, twice))
    return ids
