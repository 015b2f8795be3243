"""Rows of examples -> `Batch`. Vectorised gathers, one copy from the mapped files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemkit.config.run import StreamWindow
from gemkit.data import storage
from gemkit.data.arrays import offsets_of, standardised
from gemkit.data.batch import Batch, History, Layout
from gemkit.data.dataset import Dataset
from gemkit.data.histories import gather, lengths_of, newest, newest_of_streams
from gemkit.data.schema import Schema
from gemkit.data.shards import Part
from gemkit.errors import GemkitError, did_you_mean
from gemkit.nn.jagged import CHUNK, chunk_plan

MakeLayout = Callable[[np.ndarray, np.ndarray], Layout]
"""From the lengths (U,) of histories and the streams (T,) of their events."""


def plain_layout(lengths: np.ndarray, stream: np.ndarray | None = None) -> Layout:
    """The layout of histories of these lengths (U,) when neither tokenizer nor encoder plans ahead."""
    return Layout(int(lengths.max(initial=0)), chunk_plan(lengths, CHUNK))


@dataclass(frozen=True)
class Reading:
    """How much of a data set a batch holds.

    Attributes:
        max_history: Newest events of each history that are read.
        read_events: False leaves the histories out.
        shares_histories: Hold each distinct history once (examples of one user at one time); else one per example.
        streams: Windows of single streams, in place of `max_history` for all together.
        streams_apart: Hold each history stream by stream: in the order of `streams`, or with `max_history` events of
            each stream of the schema.
        known_until_s: Labels are as they were known then, seconds since 1970; None: they are final.
        layout: Host work for the histories; a model's `layout`.
    """

    max_history: int = 100
    read_events: bool = True
    shares_histories: bool = True
    streams: tuple[StreamWindow, ...] = ()
    streams_apart: bool = False
    known_until_s: int | None = None
    layout: MakeLayout = plain_layout

    def windows(self, schema: Schema) -> list[tuple[int, int]] | None:
        """Stream and window of each stream that is read; None: one window over all.

        Raises:
            GemkitError: The schema has no stream of a name.
        """
        if not self.streams and not self.streams_apart:
            return None
        if not self.streams:
            return [(i, self.max_history) for i in range(len(schema.streams))]
        for i, stream in enumerate(self.streams):
            if stream.name not in schema.streams:
                raise GemkitError(
                    f"data set {schema.name!r} has no stream {stream.name!r}",
                    where=f"data.streams[{i}].name",
                    allowed=", ".join(schema.streams) or "none: it has no histories",
                    fix=did_you_mean(stream.name, schema.streams),
                )
        return [(schema.streams.index(s.name), s.max_history) for s in self.streams]


def collate(
    dataset: Dataset, rows: np.ndarray, reading: Reading, whole: np.ndarray | None = None, shares: int = 1
) -> Batch:
    """Gathers examples and their histories.

    Args:
        rows: (B,) example rows, in any order, repetitions allowed.
        whole: Rows of the global batch of which `rows` are one of `shares`; None: they are all.
    """
    schema, parts, size = dataset.schema, dataset.located(rows), len(rows)
    ids: dict[str, np.ndarray] = {}
    bag_offsets: dict[str, np.ndarray] = {}
    for f in schema.categorical:
        if f.multi:
            ids[f.name], bag_offsets[f.name] = dataset.take_bags(f.name, parts, size, f.of)
        else:
            ids[f.name] = dataset.take(f.name, parts, size, f.of)
    history = None
    if reading.read_events and schema.has_events:
        history, event_ids = _histories(dataset, rows, reading)
        ids |= event_ids
    labels, delays, elapsed = _labels(dataset, parts, size, reading.known_until_s)
    return Batch(
        ids={key: _ints(values) for key, values in ids.items()},
        bag_offsets={key: torch.from_numpy(values) for key, values in bag_offsets.items()},
        dense=torch.from_numpy(_dense(dataset, parts, size)),
        vectors={f.name: torch.from_numpy(dataset.take_vectors(f.name, parts, size, f.of)) for f in schema.vectors},
        history=history,
        labels=torch.from_numpy((labels == 1).astype(np.float32)),
        masks=torch.from_numpy((labels >= 0).astype(np.float32)),
        delays=torch.from_numpy(delays),
        elapsed=torch.from_numpy(elapsed),
        weights=torch.from_numpy(dataset.take(storage.WEIGHT, parts, size)),
        surface=_ints(dataset.take(storage.SURFACE, parts, size)),
        group=_ints(dataset.take(storage.GROUP, parts, size)),
        timestamp=_ints(dataset.take(storage.TIMESTAMP, parts, size)),
        example_id=_ints(dataset.take(storage.EXAMPLE_ID, parts, size)),
        totals=None if whole is None else _totals(dataset, whole, shares, reading.known_until_s),
    )


def _totals(dataset: Dataset, rows: np.ndarray, shares: int, known_until_s: int | None) -> Tensor:
    """`Batch.totals` of a global batch. Shape: (P,)."""
    parts, size = dataset.located(rows), len(rows)
    weights = dataset.take(storage.WEIGHT, parts, size).astype(np.float32)
    if known_until_s is None:
        labels = _stored_labels(dataset, parts, size)
    else:
        labels, _, _ = _known_labels(dataset, parts, size, known_until_s)
    return torch.from_numpy((labels >= 0).astype(np.float32).T @ weights) / shares


def _labels(
    dataset: Dataset, parts: list[Part], size: int, known_until_s: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (B, P), 0, 1, or -1 where masked; `Batch.delays` and `Batch.elapsed`. As known at a time, or final."""
    if known_until_s is not None:
        return _known_labels(dataset, parts, size, known_until_s)
    elapsed = np.full(size, np.inf, np.float32)
    return _stored_labels(dataset, parts, size), _delays(dataset, parts, size), elapsed


def _stored_labels(dataset: Dataset, parts: list[Part], size: int) -> np.ndarray:
    return np.stack([dataset.take(t, parts, size) for t in dataset.schema.task_names], axis=1)


def _known_labels(
    dataset: Dataset, parts: list[Part], size: int, known_until_s: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, delays = _stored_labels(dataset, parts, size), _delays(dataset, parts, size)
    elapsed = (known_until_s - dataset.take(storage.TIMESTAMP, parts, size)).astype(np.float32)
    later = delays > elapsed[:, None]
    labels[later], delays[later] = 0, np.nan
    names = dataset.schema.task_names
    for i, task in enumerate(dataset.schema.tasks):
        if task.masked_by in names:  # what has not happened yet says nothing about what follows from it
            labels[later[:, names.index(task.masked_by)], i] = -1
    return labels, delays, elapsed


def _histories(dataset: Dataset, rows: np.ndarray, reading: Reading) -> tuple[History, dict[str, np.ndarray]]:
    if reading.shares_histories:
        _, first, index = np.unique(dataset.history_keys(rows), return_index=True, return_inverse=True)
    else:
        first = index = np.arange(len(rows))
    owners, streams, stream_offsets = rows[first], reading.windows(dataset.schema), None
    if streams is None:
        windows = newest(dataset, owners, reading.max_history)
        lengths = lengths_of(windows, len(owners))
    else:
        windows, of_streams = newest_of_streams(dataset, owners, streams, apart=reading.streams_apart)
        lengths = of_streams.sum(axis=1)
        if reading.streams_apart:
            stream_offsets = torch.from_numpy(offsets_of(of_streams.ravel()))
    now = np.repeat(dataset.take(storage.TIMESTAMP, dataset.located(owners), len(owners)), lengths)
    stream = gather(dataset, storage.STREAM, windows, np.int64)
    history = History(
        offsets=torch.from_numpy(offsets_of(lengths)),
        ages=torch.from_numpy((now - gather(dataset, storage.TIMESTAMP, windows)).astype(np.float32)),
        stream=torch.from_numpy(stream),
        history_index=torch.from_numpy(index),
        first_example=torch.from_numpy(first),
        layout=reading.layout(lengths, stream),
        stream_offsets=stream_offsets,
    )
    return history, {f.key: gather(dataset, f.name, windows, np.int64) for f in dataset.schema.event_fields}


def _dense(dataset: Dataset, parts: list[Part], size: int) -> np.ndarray:
    dense = np.empty((size, len(dataset.schema.dense)), np.float32)
    for i, f in enumerate(dataset.schema.dense):
        dense[:, i] = standardised(dataset.take(f.name, parts, size, f.of), f)
    return dense


def _delays(dataset: Dataset, parts: list[Part], size: int) -> np.ndarray:
    delays = np.full((size, len(dataset.schema.tasks)), np.nan, np.float32)
    for i, task in enumerate(dataset.schema.tasks):
        if task.delay:
            delays[:, i] = dataset.take(storage.DELAY + task.name, parts, size)
    return delays


def _ints(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))
