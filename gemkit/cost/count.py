"""What a run's model costs on a batch: counted with tensors that have shapes and no numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from gemkit.config.memory import check_model, sizes_of
from gemkit.config.run import RunConfig
from gemkit.cost.meter import CostMeter, ModuleCost
from gemkit.data.batch import Batch
from gemkit.data.dataset import Dataset
from gemkit.data.loader import Loader
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.registry import Registry
from gemkit.session import reading_of, schema_read

BETWEEN = "between"
"""What belongs to no component: the model's own lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCost:
    """An embedding table: memory and traffic, no FLOPs.

    Attributes:
        num_embeddings: Rows, of `dim` float32 numbers each.
        lookups: Rows that the batch reads, repetitions counted.
        distinct: Different ones among them: what backward writes.
    """

    num_embeddings: int
    dim: int
    lookups: int
    distinct: int

    @property
    def params(self) -> int:
        return self.num_embeddings * self.dim

    @property
    def read_bytes(self) -> int:
        """Of one forward."""
        return 4 * self.dim * self.lookups

    @property
    def written_bytes(self) -> int:
        """Of one backward."""
        return 4 * self.dim * self.distinct


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What it means to compute a block again in backward, in place of keeping its activations.

    Attributes:
        forward_flops: Computed again.
        freed_bytes: Activations of the block that need not be kept: all but its inputs and outputs.
    """

    forward_flops: int
    freed_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCost:
    """What one training step costs: forward, loss and backward, without the optimiser and without a teacher.

    Attributes:
        modules: Path of each module of the dense model -> what it cost on the batch, its children apart.
        blocks: What recomputing each block would mean.
        tables: The embedding tables that the model reads, by name.
        num_examples, num_histories, num_events: Of the batch; histories are distinct ones where examples share them.
        num_tokens: Tokens of an example, as the tokenizer makes them.
        unknown: Operators that nobody has said how to count.
        ran: Whether the step was run, because a component looks at its own numbers.
    """

    modules: dict[str, ModuleCost]
    blocks: tuple[BlockCost, ...]
    tables: dict[str, TableCost]
    num_examples: int
    num_histories: int
    num_events: int
    num_tokens: int
    unknown: tuple[str, ...]
    ran: bool

    @property
    def total(self) -> ModuleCost:
        """Of the dense model."""
        return sum(self.modules.values(), ModuleCost())

    @property
    def tail_bytes(self) -> int:
        """Activations of what comes after the blocks."""
        after = [cost for path, cost in self.modules.items() if path.partition(".")[0] in ("readout", "head")]
        return sum(cost.activation_bytes for cost in after)

    @property
    def dense_params(self) -> int:
        """Parameters without those of the embedding tables."""
        return self.total.params

    @property
    def params(self) -> int:
        """All parameters, entries of embedding tables among them."""
        return self.dense_params + sum(table.params for table in self.tables.values())

    @property
    def flops_per_example(self) -> float:
        """Forward and backward."""
        return self.total.flops / self.num_examples

    def components(self, depth: int = 0) -> dict[str, ModuleCost]:
        """``tokenizer``, ``block0.cross``, ... ``head`` -> what each cost, with all that is inside it.

        Args:
            depth: Levels of modules below them that get a row of their own (`block0.interaction.fm`).
        """
        rows: dict[str, ModuleCost] = {}
        for path, cost in self.modules.items():
            for name in _rows_of(path, depth):
                rows[name] = rows.get(name, ModuleCost()) + cost
        between = rows.pop(BETWEEN)
        return rows if between == ModuleCost() else rows | {BETWEEN: between}


def _rows_of(path: str, depth: int) -> Iterator[str]:
    """The rows that a module adds to, outermost first."""
    words = path.split(".")
    if words[0] == "blocks":
        words = [".".join([f"block{words[1]}", words[2]]), *words[3:]] if len(words) > 2 else [""]
    yield words[0] or BETWEEN
    for end in range(2, min(depth + 1, len(words)) + 1):
        yield ".".join(words[:end])


def model_cost(run: RunConfig, registry: Registry, dataset: Dataset, num_examples: int | None = None) -> RunCost:
    """What the run's model costs, on the batch in the middle of its first epoch. Nothing is trained.

    Args:
        num_examples: Examples in the batch; None: as many as the run computes with at a time. (The more there are, the
            more of them share a history.)

    Raises:
        GemkitError: The run refuses its data; or its step has to be run to be counted, and does not fit in memory.
    """

    def batch_for(dense: GEM) -> Batch:
        size = num_examples or run.train.batch_size // run.train.accumulate
        reading = reading_of(run, dense)
        return middle_batch(
            Loader(dataset, "train", batch_size=size, reading=reading, seed=run.seed, config=run.loader)
        )

    return _count(run, dataset.schema, registry, batch_for, fake=True)


def middle_batch(loader: Loader) -> Batch:
    """A batch that stands for an epoch: not the last, which is smaller; of the middle, as histories grow with time."""
    return loader.batch(0, (len(loader) - 1) // 2)


def count(run: RunConfig, schema: Schema, registry: Registry, batch: Batch, fake: bool = True) -> RunCost:
    """What a training step of the run's model costs on a batch. No random stream is touched.

    Args:
        fake: Count with fake tensors: whatever the size of the model, no memory and about a second. Else a copy of the
            model computes the step, on the CPU, which is faster if it is small. The numbers are the same.

    Raises:
        GemkitError: The step has to be run to be counted, and does not fit in memory.
    """
    return _count(run, schema, registry, lambda dense: batch, fake)


def _count(
    run: RunConfig, schema: Schema, registry: Registry, batch_for: Callable[[GEM], Batch], fake: bool
) -> RunCost:
    # What is computed again to save memory is no cost of the model's.
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, checkpoint_activations=False))
    with torch.random.fork_rng(devices=[]):
        if fake:
            try:
                with _shapes_only():
                    dense = GEM(run, schema, registry)
                return _metered(run, schema, dense, batch_for(dense), fake)
            except GemkitError:
                raise
            except Exception:
                # A component looks at what it has computed: there must be something to see. (Lengths and index
                # tensors can be looked at: the batch is real.)
                check_model(lambda: GEM(run, schema, registry), sizes_of(run.size, "size"))
        dense = GEM(run, schema, registry)
        init_parameters(dense, run.seed)
        return _metered(run, schema, dense, batch_for(dense), fake=False)


def _metered(run: RunConfig, schema: Schema, dense: GEM, batch: Batch, fake: bool) -> RunCost:
    with _shapes_only() if fake else contextlib.nullcontext():
        embedded = {key: torch.rand(len(ids), run.size.dim, requires_grad=True) for key, ids in batch.ids.items()}
    passed: list[set[int]] = []
    for block in dense.blocks:
        block.register_forward_hook(lambda _, inputs, outputs: passed.append(_storages((inputs, outputs))))
    with CostMeter(dense, inputs=batch) as meter:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.train.precision == "bf16"):
            outputs = dense(batch, embedded)
        with meter.within("head"):
            loss = dense.head.loss(outputs.scores, batch)
        loss.backward()
    history, costs = batch.history, meter.costs
    return RunCost(
        modules=costs,
        blocks=tuple(
            BlockCost(
                forward_flops=sum(c.forward_flops for path, c in costs.items() if path.startswith(f"blocks.{i}.")),
                freed_bytes=meter.freed_bytes(f"blocks.{i}", storages),
            )
            for i, storages in enumerate(passed)
        ),
        tables=_tables(schema_read(schema, dense), run.size.dim, batch),
        num_examples=batch.size,
        num_histories=0 if history is None else len(history.offsets) - 1,
        num_events=0 if history is None else len(history.ages),
        num_tokens=len(dense.tokenizer.roles),
        unknown=tuple(sorted(meter.unknown)),
        ran=not fake,
    )


def _storages(nested: Any) -> set[int]:
    return {t.untyped_storage()._cdata for t in tree_leaves(nested) if isinstance(t, Tensor)}


def _shapes_only() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def _tables(schema: Schema, dim: int, batch: Batch) -> dict[str, TableCost]:
    costs = {}
    for table in schema.tables:
        keys = [key for key, name in schema.feature_tables.items() if name == table.name and key in batch.ids]
        ids = torch.cat([batch.ids[key] for key in keys])
        costs[table.name] = TableCost(
            num_embeddings=table.num_embeddings, dim=dim, lookups=len(ids), distinct=len(torch.unique(ids))
        )
    return costs
