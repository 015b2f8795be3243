"""Embedding tables spread over processes by TorchRec: its planner, its sharding, FBGEMM's fused row-wise AdaGrad."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gemkit.config.run import OptimizerConfig
from gemkit.data.schema import Schema
from gemkit.interfaces import EmbeddingTables
from gemkit.pieces import Piece, Pieces
from gemkit_hsdp.initial import fill_rows
from gemkit_hsdp.planning import TablesConfig, check_tables, sharded_tables
from gemkit_hsdp.replicated import ReplicatedTables
from gemkit_hsdp.segments import piece_lengths, pieces_on
from gemkit_hsdp.shards import local_shards


class ShardedTables(EmbeddingTables):
    """Tables in a TorchRec `DistributedModelParallel`, small ones in every process.

    Lookups are unpooled, so tables are those of an `EmbeddingCollection`; a batch of any shape is one example for
    TorchRec, with as many ids for each table as there are. Gradients are averaged over the processes of the group.

    Args:
        schema: Tables, and which feature reads which.
        dim: D, the same for every table.
        seed: Each table starts from (seed, its name): `fill_rows`.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        optimizer: OptimizerConfig,
        seed: int,
        device: torch.device,
        config: TablesConfig,
    ) -> None:
        super().__init__()
        self.dim, self.prefetches = dim, config.prefetch_ids
        self._ahead: dict[int, tuple[Any, Any]] = {}
        named = check_tables(config.tables, schema)
        how = {t.name: named.get(t.name, config.sharding) for t in schema.tables}
        for t in schema.tables:
            if t.name not in named and config.sharding == "auto" and t.num_embeddings < config.replicate_below:
                how[t.name] = "data_parallel"
        small = [t for t in schema.tables if how[t.name] == "data_parallel"]
        large = [t for t in schema.tables if how[t.name] != "data_parallel"]
        self.features_of = {
            t.name: [f for f, table in schema.feature_tables.items() if table == t.name] for t in schema.tables
        }
        self.small: ReplicatedTables | None = None
        self.large: Any = None
        self.mesh: DeviceMesh | None = None
        if small:
            part = dataclasses.replace(schema, tables=tuple(small))
            lr, eps = optimizer.embedding_lr, optimizer.embedding_eps
            dtype, by_chance = config.rows_dtype, config.rounds_by_chance
            self.small = ReplicatedTables(part, dim, lr, eps, seed, dtype, by_chance).to(device)
        if large:
            self.rows = {t.name: t.num_embeddings for t in large}
            spread = sharded_tables(self.rows, dim, optimizer, device, {n: how[n] for n in self.rows}, config)
            self.large, self.mesh, self._average = spread.tables, spread.mesh, spread.average
            if self.mesh is not None:
                self.copy, self.copies = self.mesh.get_local_rank("replicate"), self.mesh.size(0)
            state = self.large.state_dict()
            self._weights = {name: state[f"embeddings.{name}.weight"] for name in self.rows}  # views of the tables
            placed = self.large.plan.plan[""]
            self._columns = {  # first ones of the parts of a row
                name: sorted({shard.shard_offsets[1] for shard in placed[name].sharding_spec.shards})
                for name in self.rows
            }
            for name, pieces in self._large_weights().items():
                for start, values in pieces.pieces:
                    block = torch.empty(values.shape)
                    fill_rows(block, name, seed, dim, *start)
                    values.copy_(block)

    def forward(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shape: feature key -> (n,) -> (n, D)."""
        found: dict[str, Tensor] = {}
        if self.small is not None:
            read = {f for name in self.small.names for f in self.features_of[name]}
            found |= self.small({feature: values for feature, values in ids.items() if feature in read})
        if self.large is not None:
            key = id(ids)
            context, exchanged = self._ahead.pop(key) if key in self._ahead else self._exchange(ids)
            out = self.large.module.compute_and_output_dist(context, exchanged.wait())
            for name, features in self._read(ids).items():
                if features:
                    parts = out[name].values().split([len(ids[f]) for f in features])
                    found |= dict(zip(features, parts, strict=True))
        rows = _Together.apply(*found.values()) if found else ()  # type: ignore[no-untyped-call]
        return dict(zip(found, rows, strict=True))

    def prefetch(self, ids: Mapping[str, Tensor]) -> None:
        if self.large is not None and self.prefetches:
            self._ahead[id(ids)] = self._exchange(ids)

    def forget(self) -> None:
        self._ahead.clear()

    def _read(self, ids: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Large table -> features of a batch that read it."""
        return {name: [f for f in self.features_of[name] if f in ids] for name in self.rows}

    def _exchange(self, ids: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """Sends ids to the processes that hold their rows; they are under way when this returns."""
        from torchrec import KeyedJaggedTensor

        none = next(iter(ids.values()))[:0]
        values = [torch.cat([none, *(ids[f] for f in features)]) for features in self._read(ids).values()]
        lengths = piece_lengths([len(v) for v in values], pieces_on(none.device), none.device)
        module = self.large.module
        context = module.create_context()
        batch = KeyedJaggedTensor(keys=list(self.rows), values=torch.cat(values), lengths=lengths)
        return context, module.input_dist(context, batch).wait()

    def set_lr(self, lr: float) -> None:
        if self.small is not None:
            self.small.set_lr(lr)
        if self.large is not None:
            optimizer = self.large.fused_optimizer
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()  # updates nothing: hands the rate to FBGEMM, which updates inside backward

    def tables(self) -> dict[str, Tensor]:
        return _whole(self.weight_pieces())

    def optimizer_state(self) -> dict[str, Tensor]:
        return _whole(self.state_pieces())

    def weight_pieces(self) -> dict[str, Pieces]:
        return (self.small.weight_pieces() if self.small is not None else {}) | self._large_weights()

    def state_pieces(self) -> dict[str, Pieces]:
        found = self.small.state_pieces() if self.small is not None else {}
        if self.large is None:
            return found
        state = self.large.fused_optimizer.state_dict()["state"]
        for name, weights in self._large_weights().items():
            held = [m for n, m in state.get(f"embeddings.{name}.weight", {}).items() if n.endswith("momentum1")]
            moments = [values for _, values in local_shards(held[0])] if held else []
            apart = len(self._columns[name]) > 1  # column-wise: each part of a row has an accumulator of its own
            pieces = [
                Piece((start[0], self._columns[name].index(start[1])), m.view(-1, 1))
                if apart
                else Piece((start[0],), m.view(-1))
                for (start, _), m in zip(weights.pieces, moments, strict=True)
            ]
            shape = (self.rows[name], len(self._columns[name])) if apart else (self.rows[name],)
            found[name] = Pieces(shape, tuple(pieces), weights.saved_here)
        return found

    def have_moved(self) -> None:
        """A step has been made: each group has updated its copy by its own examples."""
        if self.copies > 1:
            self.apart = frozenset(self.rows)

    def average(self) -> None:
        """The mean of weights and optimiser state over the groups.

        Paper: two-dimensional sparse parallelism (arXiv 2508.03854), which averages both.
        """
        if self.apart:
            self._average()
            self.apart = frozenset()

    def _large_weights(self) -> dict[str, Pieces]:
        if self.large is None:
            return {}
        found = {}
        for name, rows in self.rows.items():
            held = tuple(Piece(start, values) for start, values in local_shards(self._weights[name]))
            found[name] = Pieces((rows, self.dim), held, saved_here=self.copy == 0)
        return found


class _Together(torch.autograd.Function):
    """Hands on what was looked up. Where a gradient reaches any of it, all tables go through their backward pass.

    That is where processes speak to each other. One whose examples have no events, for instance, would otherwise leave
    out tables that only events read, and the others would wait for it.
    """

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _whole(pieces: Mapping[str, Pieces]) -> dict[str, Tensor]:
    """Those tensors that are here in one piece, which with one process is all of them."""
    return {name: held.whole for name, held in pieces.items() if held.whole is not None}
