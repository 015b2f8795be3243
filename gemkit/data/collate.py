"""Rows of examples -> `Batch`. Vectorised gathers; no Python loop over examples or events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gemkit.data import storage
from gemkit.data.arrays import offsets_of, standardised
from gemkit.data.batch import Batch, History, Layout
from gemkit.data.dataset import Dataset
from gemkit.nn.jagged import CHUNK, chunk_plan

MakeLayout = Callable[[np.ndarray], Layout]


def plain_layout(lengths: np.ndarray) -> Layout:
    """The layout of histories of these lengths (U,) when no sequence encoder plans ahead."""
    return Layout(int(lengths.max(initial=0)), chunk_plan(lengths, CHUNK))


def collate(
    dataset: Dataset,
    rows: np.ndarray,
    *,
    max_history: int,
    read_events: bool,
    shares_histories: bool,
    layout: MakeLayout = plain_layout,
) -> Batch:
    """Gathers the examples `rows` and their histories.

    Args:
        rows: (B,) example rows, in any order, repetitions allowed.
        max_history: Newest events of each history that are read.
        read_events: False leaves the histories out.
        shares_histories: Hold each distinct history once (examples of one user at one time); else one per example.
        layout: Host work for the histories, from their lengths (U,); a model's `layout`.
    """
    schema, columns = dataset.schema, dataset.columns
    ids: dict[str, np.ndarray] = {}
    bag_offsets: dict[str, np.ndarray] = {}
    for f in schema.categorical:
        if f.multi:
            offsets, values = dataset.bags[f.name]
            positions, bag_offsets[f.name] = ranges(offsets[rows], offsets[rows + 1])
            ids[f.name] = values[positions]
        else:
            ids[f.name] = columns[f.name][rows]
    history = None
    if read_events and schema.has_events:
        history, event_ids = _histories(dataset, rows, max_history, shares_histories, layout)
        ids |= event_ids
    labels = np.stack([columns[t][rows] for t in schema.task_names], axis=1)
    return Batch(
        ids={key: _ints(values) for key, values in ids.items()},
        bag_offsets={key: torch.from_numpy(values) for key, values in bag_offsets.items()},
        dense=torch.from_numpy(_dense(dataset, rows)),
        vectors={f.name: torch.from_numpy(dataset.vectors[f.name][rows]) for f in schema.vectors},
        history=history,
        labels=torch.from_numpy((labels == 1).astype(np.float32)),
        masks=torch.from_numpy((labels >= 0).astype(np.float32)),
        weights=torch.from_numpy(columns[storage.WEIGHT][rows]),
        surface=_ints(columns[storage.SURFACE][rows]),
        group=_ints(columns[storage.GROUP][rows]),
        timestamp=_ints(columns[storage.TIMESTAMP][rows]),
        example_id=_ints(columns[storage.EXAMPLE_ID][rows]),
    )


def _histories(
    dataset: Dataset, rows: np.ndarray, max_history: int, shares_histories: bool, layout: MakeLayout
) -> tuple[History, dict[str, np.ndarray]]:
    columns, events = dataset.columns, dataset.events
    if shares_histories:
        _, first, index = np.unique(columns[storage.HISTORY][rows], return_index=True, return_inverse=True)
    else:
        first = index = np.arange(len(rows))
    owners = rows[first]
    end = columns[storage.HISTORY_END][owners]
    start = np.maximum(columns[storage.HISTORY_START][owners], end - max_history)
    positions, offsets = ranges(start, end)
    lengths = end - start
    now = np.repeat(columns[storage.TIMESTAMP][owners], lengths)
    history = History(
        offsets=torch.from_numpy(offsets),
        ages=torch.from_numpy((now - events[storage.TIMESTAMP][positions]).astype(np.float32)),
        stream=_ints(events[storage.STREAM][positions]),
        history_index=torch.from_numpy(index),
        first_example=torch.from_numpy(first),
        layout=layout(lengths),
    )
    return history, {f.key: events[f.name][positions] for f in dataset.schema.event_fields}


def _dense(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    dense = np.empty((len(rows), len(dataset.schema.dense)), np.float32)
    for i, f in enumerate(dataset.schema.dense):
        dense[:, i] = standardised(dataset.columns[f.name][rows], f)
    return dense


def ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions starts[0] .. ends[0]-1, starts[1] .. ends[1]-1, ... and where each run begins among them."""
    lengths = ends - starts
    offsets = offsets_of(lengths)
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return positions, offsets


def _ints(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))
