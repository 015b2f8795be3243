"""Inputs for one component alone: real batches of a synthetic data set, and random tensors for the rest.

Everything random depends on which example or event it belongs to, not on its place in a batch. So the same
examples in another order, or fewer of them, are the same inputs in another order, or fewer of them.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gemkit.component import ComponentSpec
from gemkit.data import storage
from gemkit.data.arrays import ranges
from gemkit.data.batch import Batch, Layout
from gemkit.data.collate import MakeLayout, Reading, collate, plain_layout
from gemkit.data.dataset import Dataset
from gemkit.interfaces import BuildContext, Events, Tokenizer
from gemkit.nn.init import init_parameters, named_seed
from gemkit.registry import load_registry
from gemkit.testing.data import make_dataset

DIM = 16
ROLES = ("user", "user", "item", "item", "context")
NUM_TOKENS_OUT = 6
READOUT_DIM = 24
MAX_HISTORY = 150
SEED = 1
DATA: dict[str, Any] = {"num_users": 20, "num_examples": 800, "num_events": 3600}
"""Options of the contracts' data set; a teacher of a transfer strategy is trained on the same."""


class Inputs(NamedTuple):
    """What components of the various kinds are given for a batch of examples.

    Attributes:
        embedded: Feature key -> (n, D), as embedding tables would give.
        x: (B, N, D).
        query: (B, Q, D).
        earlier: Outputs of earlier blocks, (B, N', D) each.
        readout: (B, R).
    """

    batch: Batch
    embedded: dict[str, Tensor]
    x: Tensor
    query: Tensor
    earlier: list[Tensor]
    events: Events
    readout: Tensor

    @property
    def history_index(self) -> list[int]:
        """The history of each example."""
        index: list[int] = self.events.history_index.tolist()
        return index


@functools.cache
def dataset() -> Dataset:
    """The data set of all contracts: histories of 0 to 150 events, some shared by several examples."""
    folder = tempfile.TemporaryDirectory(prefix="gemkit-contracts-")
    atexit.register(folder.cleanup)
    return make_dataset(Path(folder.name) / "data", **DATA)


def history_lengths() -> np.ndarray:
    """Events that each example of the data set sees. Shape: (examples,)."""
    data = dataset()
    return data.history_lengths(np.arange(data.num_examples), MAX_HISTORY)


@functools.cache
def some_rows() -> tuple[int, ...]:
    """Examples whose histories are empty, short, long, and shared."""
    lengths, history = history_lengths(), dataset().columns[storage.HISTORY]
    by_length = np.argsort(lengths, kind="stable")
    chosen = [int(by_length[i]) for i in np.linspace(0, len(by_length) - 1, 7).astype(int)]
    sizes = np.bincount(history)[history]
    shared = [int(r) for r in by_length[sizes[by_length] > 1]]
    twins = [int(r) for r in np.flatnonzero(history == history[shared[-1]])]
    return tuple(dict.fromkeys([*twins, *chosen, *rows_without_events()[:2]]))


@functools.cache
def rows_without_events() -> tuple[int, ...]:
    """Examples with an empty history, of different users and times."""
    rows = np.flatnonzero(history_lengths() == 0)
    _, first = np.unique(dataset().columns[storage.HISTORY][rows], return_index=True)
    return tuple(int(r) for r in rows[first][:4])


def context(layer: int = 0, **changes: Any) -> BuildContext:
    """The place in a model for which components are built."""
    fields: dict[str, Any] = {
        "dim": DIM,
        "schema": dataset().schema,
        "num_tokens_in": len(ROLES),
        "num_tokens_out": NUM_TOKENS_OUT,
        "layer": layer,
        "roles": ROLES,
        "readout_dim": READOUT_DIM,
    }
    return load_registry().context(**(fields | changes))


def build(spec: ComponentSpec, config: Any, layer: int = 0, seed: int = SEED, **changes: Any) -> Any:
    """A component with first weights made from `seed`, in evaluation mode."""
    if spec.kind == "cross" and layer:
        changes = {"num_cls": num_cls(spec, config, layer)} | changes
    module = spec.cls(config, context(layer, **changes))
    init_parameters(module, seed)
    return module.eval()


def num_cls(spec: ComponentSpec, config: Any, layer: int) -> int:
    """CLS tokens that reach layer `layer`: what a cross layer itself adds in layer 0; for encoders, some and none."""
    if spec.kind == "cross":
        return build(spec, config).num_cls_added if layer else 0
    return 0 if layer else 2


def make_inputs(module: nn.Module, rows: tuple[int, ...], layer: int = 0, num_cls: int = 0) -> Inputs:
    """The inputs of the examples `rows`, as the component wants its histories: shared or one for each example."""
    data = dataset()
    index = np.array(rows)

    def layout(lengths: np.ndarray, stream: np.ndarray) -> Layout:
        plan: Callable[[np.ndarray], Any] | None = getattr(module, "plan", None)
        arrangement = None
        if isinstance(module, Tokenizer):
            lengths, arrangement = module.arrange(lengths, stream)
        plans = plan(lengths) if plan else None
        return plain_layout(lengths)._replace(plan=plans, arrangement=arrangement)

    batch = make_batch(getattr(module, "shares_histories", True), layout, rows)
    assert batch.history is not None
    owners = index[batch.history.first_example.numpy()]
    end = data.columns[storage.HISTORY_END][owners]
    positions = ranges(end - batch.history.offsets.diff().numpy(), end)
    histories, examples = data.columns[storage.HISTORY][owners], data.num_examples
    x = noise("x", examples, len(ROLES), DIM)[index]
    events = Events(
        values=noise("values", data.num_events, DIM)[positions],
        offsets=batch.history.offsets,
        ages=batch.history.ages,
        stream=batch.history.stream,
        cls=noise("cls", examples, num_cls, DIM)[histories],
        owner=noise("owner", examples, ROLES.count("user"), DIM)[histories],
        history_index=batch.history.history_index,
        layout=batch.history.layout,
    )
    return Inputs(
        batch=batch,
        embedded=embed(batch),
        x=x,
        query=x[:, [i for i, role in enumerate(ROLES) if role == "item"]],
        earlier=[noise(f"earlier{i}", examples, NUM_TOKENS_OUT, DIM)[index] for i in range(layer)],
        events=events,
        readout=noise("readout", examples, READOUT_DIM)[index],
    )


def make_batch(
    shares_histories: bool = True, layout: MakeLayout = plain_layout, rows: tuple[int, ...] | None = None
) -> Batch:
    """The examples `rows`, by default some with short, long, empty and shared histories, with their events."""
    reading = Reading(max_history=MAX_HISTORY, shares_histories=shares_histories, layout=layout)
    return collate(dataset(), np.array(some_rows() if rows is None else rows), reading)


def embed(batch: Batch) -> dict[str, Tensor]:
    """Vectors of a batch's ids from random tables. Shape: feature key -> (n, D)."""
    schema = dataset().schema
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    tables = {key: table for key, table in schema.feature_tables.items() if key in batch.ids}
    return {key: noise(f"table/{table}", sizes[table], DIM)[batch.ids[key]] for key, table in tables.items()}


def disturb(inputs: Inputs, example: int) -> tuple[Inputs, list[int]]:
    """Changes one example and its history beyond recognition.

    Returns:
        The changed inputs, and the examples that have neither this example's tensors nor its history.
    """
    history = inputs.history_index[example]
    start, end = inputs.events.offsets[history : history + 2].tolist()

    def changed(values: Tensor, rows: Any) -> Tensor:
        values = values.clone()
        values[rows] = 100 * torch.randn_like(values[rows])
        return values

    events = inputs.events._replace(
        values=changed(inputs.events.values, slice(start, end)),
        cls=changed(inputs.events.cls, history),
        owner=changed(inputs.events.owner, history),
    )
    others = [i for i, h in enumerate(inputs.history_index) if h != history]
    return inputs._replace(
        x=changed(inputs.x, example),
        query=changed(inputs.query, example),
        earlier=[changed(e, example) for e in inputs.earlier],
        events=events,
        readout=changed(inputs.readout, example),
    ), others


@functools.lru_cache(maxsize=64)
def noise(name: str, *shape: int) -> Tensor:
    """Standard normal numbers, the same for the same name and shape."""
    generator = torch.Generator().manual_seed(named_seed(SEED, name))
    return torch.randn(shape, generator=generator)
