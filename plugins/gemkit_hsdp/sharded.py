"""Embedding tables spread over processes by TorchRec: its planner, its sharding, FBGEMM's fused row-wise AdaGrad."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gemkit.data.schema import Schema
from gemkit.interfaces import EmbeddingTables
from gemkit.pieces import Piece, Pieces
from gemkit_hsdp.initial import fill_rows
from gemkit_hsdp.planning import sharded_tables
from gemkit_hsdp.replicated import ReplicatedTables


class ShardedTables(EmbeddingTables):
    """Tables in a TorchRec `DistributedModelParallel`, small ones in every process.

    Lookups are unpooled, so tables are those of an `EmbeddingCollection`; a batch of any shape is one example for
    TorchRec, with as many ids for each table as there are. Gradients are averaged over the processes of the group.

    Args:
        schema: Tables, and which feature reads which.
        dim: D, the same for every table.
        shardings: Table -> how; those that are missing, as `sharding` says.
        replicate_below: Tables of fewer rows are held by every process, unless `shardings` names them.
        prefetches: Whether `prefetch` sends the ids of later batches ahead.
        group: The processes over which the tables are spread.
        replicas: Processes that hold the same shards, if there are several groups.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        lr: float,
        eps: float,
        seed: int,
        device: torch.device,
        shardings: Mapping[str, str],
        sharding: str,
        replicate_below: int,
        prefetches: bool,
        group: Any,
        replicas: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.prefetches, self.replicas = dim, prefetches, replicas
        self._ahead: dict[int, tuple[Any, Any]] = {}
        how = {t.name: shardings.get(t.name, sharding) for t in schema.tables}
        for t in schema.tables:
            if t.name not in shardings and sharding == "auto" and t.num_embeddings < replicate_below:
                how[t.name] = "data_parallel"
        small = [t for t in schema.tables if how[t.name] == "data_parallel"]
        large = [t for t in schema.tables if how[t.name] != "data_parallel"]
        self.features_of = {
            t.name: [f for f, table in schema.feature_tables.items() if table == t.name] for t in schema.tables
        }
        self.small: ReplicatedTables | None = None
        self.large: Any = None
        if small:
            part = dataclasses.replace(schema, tables=tuple(small))
            self.small = ReplicatedTables(part, dim, lr, eps, seed).to(device)
        if large:
            self.rows = {t.name: t.num_embeddings for t in large}
            self.large = sharded_tables(self.rows, dim, lr, eps, device, how, group)
            state = self.large.state_dict()
            self._weights = {name: state[f"embeddings.{name}.weight"] for name in self.rows}  # views of the tables
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
        return found

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
        lengths = torch.tensor([len(v) for v in values], dtype=torch.int32, device=none.device)
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
            moments = [shard.tensor for shard in held[0].local_shards()] if held else []
            metadata = self._weights[name].metadata().shards_metadata
            widths = sorted({shard.shard_offsets[1] for shard in metadata})  # first columns of the parts of a row
            apart = len(widths) > 1  # column-wise: each part of a row has an accumulator of its own
            pieces = [
                Piece((start[0], widths.index(start[1])), m.view(-1, 1)) if apart else Piece((start[0],), m.view(-1))
                for (start, _), m in zip(weights.pieces, moments, strict=True)
            ]
            shape = (self.rows[name], len(widths)) if apart else (self.rows[name],)
            found[name] = Pieces(shape, tuple(pieces), weights.saved_here)
        return found

    @torch.no_grad()
    def average_replicas(self) -> None:
        """The mean of weights and optimiser state over the groups that hold the same shards.

        Paper: two-dimensional sparse parallelism (arXiv 2508.03854), which averages both.
        """
        if self.replicas is None:
            return
        world = dist.get_world_size(self.replicas)
        for pieces in (*self._large_weights().values(), *self.state_pieces().values()):
            for _, values in pieces.pieces:
                dist.all_reduce(values, group=self.replicas)
                values /= world

    def _large_weights(self) -> dict[str, Pieces]:
        if self.large is None:
            return {}
        first = self.replicas is None or dist.get_group_rank(self.replicas, dist.get_rank()) == 0
        found = {}
        for name, rows in self.rows.items():
            shards = self._weights[name].local_shards()
            held = tuple(Piece(tuple(s.metadata.shard_offsets), s.tensor.detach()) for s in shards)
            found[name] = Pieces((rows, self.dim), held, first)
        return found


def _whole(pieces: Mapping[str, Pieces]) -> dict[str, Tensor]:
    """Those tensors that are here in one piece, which with one process is all of them."""
    return {name: held.whole for name, held in pieces.items() if held.whole is not None}
