"""A run's parts, put together: backend, data, model, tables. Training, evaluation and prediction start here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gemkit.config.build import load_run_config
from gemkit.config.fields import from_mapping
from gemkit.config.memory import check_model, sizes_of
from gemkit.config.run import RunConfig
from gemkit.data import storage
from gemkit.data.batch import Batch
from gemkit.data.collate import Reading
from gemkit.data.dataset import Dataset
from gemkit.data.loader import Loader
from gemkit.data.prepare import prepare
from gemkit.data.schema import Schema
from gemkit.data.selection import Selection
from gemkit.errors import GemkitError
from gemkit.interfaces import EmbeddingTables, Outputs, ParallelBackend
from gemkit.metrics.collector import MetricCollector
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.pieces import Pieces, fill, pieces_of
from gemkit.registry import Registry
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import Stored
from gemkit.runs.folder import RunFolder
from gemkit.runs.freed_memory import keep_freed_memory
from gemkit.runs.keeping import BEST
from gemkit.runs.progress import Progress

DENSE, TABLES = "dense.", "tables."


@dataclasses.dataclass
class Model:
    """The dense part and the embedding tables of one run.

    Attributes:
        dense: The bare module, whose parameters checkpoints hold.
        forward: What is called: `dense` itself, or Fabric's wrapper of it once it is placed.
        rank: Of this process, among those that train it.
        features: Adds to a batch what a transfer strategy feeds the model, besides what the data set holds.
    """

    run: RunConfig
    schema: Schema
    dense: GEM
    embeddings: EmbeddingTables
    forward: nn.Module
    rank: int = 0
    features: Callable[[Batch], Batch] | None = None

    def __call__(self, batch: Batch, taps: tuple[str, ...] = ()) -> Outputs:
        """Shape: logits (B, P), readout (B, R)."""
        if self.features is not None:
            batch = self.features(batch)
        embedded = self.embeddings(batch.ids)
        if self.embeddings.frozen:
            table_of = self.schema.feature_tables
            embedded = {k: v.detach() if table_of[k] in self.embeddings.frozen else v for k, v in embedded.items()}
        outputs: Outputs = self.forward(batch, embedded, taps)
        return outputs

    def weights(self) -> dict[str, Pieces]:
        """What this process holds of everything that prediction needs, by name."""
        first = self.rank == 0
        named = {DENSE + name: pieces_of(value, first) for name, value in self.dense.state_dict().items()}
        return named | {TABLES + name: pieces for name, pieces in self.embeddings.weight_pieces().items()}

    def load_weights(self, tensors: Stored, where: str) -> None:
        """Copies weights in, whatever the layout in which they were saved.

        Raises:
            GemkitError: Names or shapes are not this model's; the first differences are named.
        """
        own = self.weights()
        wanted = {name: pieces.shape for name, pieces in own.items()}
        found = {name: tensors.shape(name) for name in tensors if name.startswith((DENSE, TABLES))}
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        if different:
            rows = [f"{n}: model {wanted.get(n, 'has none')}, checkpoint {found.get(n, 'has none')}" for n in different]
            raise GemkitError(
                f"the checkpoint is of another model: {len(different)} tensors differ, first {'; '.join(rows[:3])}",
                where=where,
                fix="use the config and the data set that the checkpoint was trained with",
            )
        for name, pieces in own.items():
            fill(pieces, tensors, name)

    @property
    def num_parameters(self) -> int:
        """Dense parameters and table entries."""
        return self.num_dense_parameters + sum(math.prod(p.shape) for p in self.embeddings.weight_pieces().values())

    @property
    def num_dense_parameters(self) -> int:
        """Parameters of the dense part."""
        return sum(p.numel() for p in self.dense.parameters())


def open_dataset(
    run: RunConfig, registry: Registry, progress: Progress, backend: ParallelBackend | None = None
) -> Dataset:
    """The run's data set, fetched and built if that has not been done: by the first process, then the others look."""
    if backend is not None and backend.rank:
        backend.broadcast(None)
    with progress.callback("bytes") as fetching, progress.callback("steps") as building:
        dataset = prepare(registry.get("data", run.data.name), run.data, fetching, building, progress.print)
    if backend is not None and not backend.rank:
        backend.broadcast(None)
    return dataset.selected(Selection.of(run.data))


def build_model(run: RunConfig, schema: Schema, registry: Registry, backend: ParallelBackend) -> Model:
    """The run's model with its first weights, on the backend's device."""
    check_model(lambda: GEM(run, schema, registry), sizes_of(run.size, "size"))
    dense = GEM(run, schema, registry)
    init_parameters(dense, run.seed)
    embeddings = backend.build_embeddings(schema_read(schema, dense), run.size.dim, run.optimizer, run.seed)
    dense.to(backend.fabric.device)
    return Model(run, schema, dense, embeddings, dense, backend.rank)


def schema_read(schema: Schema, dense: GEM) -> Schema:
    """The part of a schema that the model reads: its event fields, or none, and the tables of what is left."""
    read = schema if dense.reads_events else dataclasses.replace(schema, event_fields=())
    used = set(read.feature_tables.values())
    return dataclasses.replace(read, tables=tuple(t for t in schema.tables if t.name in used))


def reading_of(run: RunConfig, dense: GEM, known_until_s: int | None = None) -> Reading:
    """How much of the data set a batch for this model holds."""
    return Reading(
        max_history=run.data.max_history,
        read_events=dense.reads_events,
        shares_histories=dense.shares_histories,
        streams=run.data.streams,
        streams_apart=run.data.streams_apart,
        known_until_s=known_until_s,
        layout=dense.layout,
    )


def make_loader(
    run: RunConfig, dataset: Dataset, model: Model, backend: ParallelBackend, split: str, batch_size: int
) -> Loader:
    """The loader of a split; `batch_size` counts all ranks' examples.

    The order of `run.loader` is for train; the others are read as stored, and by threads: an evaluation is short, and
    what is predicted may be in no file that a worker process could open.
    """
    config = run.loader
    if split != "train":
        config = dataclasses.replace(config, order="stored", worker_kind="thread")
    return Loader(
        dataset,
        split,
        batch_size=batch_size,
        reading=reading_of(run, model.dense, dataset.known_until_s(split)),
        seed=run.seed,
        rank=backend.rank,
        world_size=backend.world_size,
        config=config,
        pin_memory=config.pin_memory and backend.fabric.device.type == "cuda",
    )


def to_device(batches: Iterator[Batch], backend: ParallelBackend) -> Iterator[Batch]:
    """Batches on the backend's device; on a GPU each is copied there while the one before is computed with."""
    if backend.fabric.device.type == "cuda":
        return _copied_ahead(batches, backend)
    return (backend.fabric.to_device(batch) for batch in batches)


def prefetched(batches: Iterator[Batch], embeddings: EmbeddingTables) -> Iterator[Batch]:
    """Batches, of which the tables see the ids of each while the one before is computed with."""
    if not embeddings.prefetches:
        yield from batches
        return
    waiting: Batch | None = None
    try:
        for batch in batches:
            embeddings.prefetch(batch.ids)
            if waiting is not None:
                yield waiting
            waiting = batch
        if waiting is not None:
            yield waiting
    finally:
        embeddings.forget()


def _copied_ahead(batches: Iterator[Batch], backend: ParallelBackend) -> Iterator[Batch]:
    """Copies on a stream of its own, one batch ahead."""
    copies = torch.cuda.Stream(backend.fabric.device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = backend.fabric.to_device(batch)
            done = copies.record_event()
        if waiting:
            yield _handed_over(*waiting)
        waiting = copied, done
    if waiting:
        yield _handed_over(*waiting)


def _handed_over(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for its copy (but not for later ones)."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in tree_leaves(batch):
        if isinstance(value, Tensor):
            # Its memory belongs to the stream of the copies, which must not reuse it while it is computed with.
            value.record_stream(stream)
    return batch


def base_rates(dataset: Dataset) -> dict[str, float | None]:
    """Each task's label rate in the training split; None without a label."""
    rows = dataset.split("train")
    rates: dict[str, float | None] = {}
    for task in dataset.schema.task_names:
        labels = dataset.columns[task][rows]
        known = labels[labels >= 0]
        rates[task] = float(known.mean()) if len(known) else None
    return rates


def newest_trained(dataset: Dataset) -> int:
    """Time of the newest example of the training split, seconds since 1970; 0 if the data set has no time."""
    return int(dataset.columns[storage.TIMESTAMP][dataset.split("train")].max(initial=0))


@torch.no_grad()
def evaluate_split(
    model: Model, loader: Loader, backend: ParallelBackend, collector: MetricCollector, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Metrics of a whole split, by task."""
    collector.reset()
    model.dense.eval()
    for number, batch in enumerate(to_device(loader.epoch(0), backend)):
        collector.update(model(batch).logits, batch)
        advance(loader.num_examples(number))
    model.dense.train()
    return collector.compute(backend.all_gather if backend.world_size > 1 else None)


class LoadedRun(NamedTuple):
    """The best model of a run, ready to predict.

    Attributes:
        fingerprint: Of the data set that it was trained on.
        snapshot_s: Time of the newest example that it was trained on, runs that it began with included; seconds since
            1970.
    """

    model: Model
    backend: ParallelBackend
    fingerprint: str
    snapshot_s: int

    def open_dataset(self, registry: Registry, progress: Progress) -> Dataset:
        """The data set that the model was trained on.

        Raises:
            GemkitError: It has changed since: its ids may mean other things now.
        """
        dataset = open_dataset(self.model.run, registry, progress)
        check_fingerprint(dataset.fingerprint, self.fingerprint, dataset.schema, str(dataset.folder))
        return dataset


def check_fingerprint(found: str, expected: str, schema: Schema, where: str) -> None:
    """
    Raises:
        GemkitError: The data set that was found is not the one that a checkpoint was trained on.
    """
    if found != expected:
        raise GemkitError(
            f"the data set '{schema.name}' has changed since the checkpoint was written",
            where=where,
            allowed=f"the data set with fingerprint {expected[:12]}; this one has {found[:12]}",
            fix="restore the data set (config.yaml has the options that it was built with), or train a new run",
        )


def load_run(path: Path, registry: Registry, schema: Schema | None = None) -> LoadedRun:
    """The best model of a run folder.

    Args:
        schema: The data set's, if it is open already; else the checkpoint's own.
    """
    folder = RunFolder.open(path)
    run = load_run_config(folder.path / "config.yaml", registry)
    file = folder.checkpoints / BEST
    tensors, state = checkpoint.load(file)
    backend: ParallelBackend = registry.build("parallel", run.parallel).alone()
    backend.launch(run)
    keep_freed_memory(backend.fabric.device)
    schema = schema or from_mapping(Schema, state["schema"])
    model = build_model(run, schema, registry, backend)
    if run.transfer is not None:
        transfer = registry.build("transfer", run.transfer, registry.context(dim=run.size.dim, schema=schema))
        model.features = transfer.to(backend.fabric.device).with_features
    model.load_weights(tensors, str(file))
    model.dense.eval()
    return LoadedRun(model, backend, state["fingerprint"], state["snapshot_s"])
