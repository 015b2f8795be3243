"""Embedding tables of one process, with row-wise AdaGrad inside backward: FBGEMM's, or plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gemkit.data.schema import Schema
from gemkit.interfaces import EmbeddingTables
from gemkit.nn.init import named_seed


class LocalTables(EmbeddingTables):
    """All tables of a schema in one process; subclasses look rows up and update them.

    The rows of all tables lie one after the other; table t's row i is row `starts[t] + i`.

    Args:
        schema: Tables, and which feature reads which.
        dim: D, the same for every table.
        lr, eps: Of row-wise AdaGrad (Duchi et al. 2011 with one accumulator a row: the mean over the row of
            the squared gradient).
        seed: Each table starts from (seed, its name), uniform within +-dim^-0.5 scaled by `init_scale`.
    """

    init_scale = 0.1

    def __init__(self, schema: Schema, dim: int, lr: float, eps: float, seed: int) -> None:
        super().__init__()
        self.dim, self.lr, self.eps = dim, lr, eps
        self.names = [t.name for t in schema.tables]
        self.sizes = [t.num_embeddings for t in schema.tables]
        self.features_of = {
            name: [f for f, table in schema.feature_tables.items() if table == name] for name in self.names
        }
        self._allocate()
        for name, weights in self.tables().items():
            generator = torch.Generator().manual_seed(named_seed(seed, f"table/{name}"))
            bound = self.init_scale * dim**-0.5
            weights.copy_(torch.empty(weights.shape).uniform_(-bound, bound, generator=generator))
            weights[0] = 0.0  # "unknown": hardly trained, so its start is what it says

    def _allocate(self) -> None:
        raise NotImplementedError

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all tables in one call. Shape: (n,) ids, table after table, `counts` of each -> (n, D)."""
        raise NotImplementedError

    def forward(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shape: feature key -> (n,) -> (n, D)."""
        keys = [key for name in self.names for key in self.features_of[name] if key in ids]
        counts = [sum(ids[k].shape[0] for k in self.features_of[n] if k in ids) for n in self.names]
        rows = self._lookup(torch.cat([ids[key] for key in keys]), counts)
        return dict(zip(keys, rows.split([ids[key].shape[0] for key in keys]), strict=True))


class FusedTables(LocalTables):
    """FBGEMM's table-batched embedding, unpooled: lookup, backward and update fused.

    Paper: FBGEMM GPU's TBE, EXACT_ROWWISE_ADAGRAD.
    """

    def _allocate(self) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        cuda = torch.cuda.is_available()
        location = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
        device = ComputeDevice.CUDA if cuda else ComputeDevice.CPU
        self.tbe: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, self.dim, location, device) for size in self.sizes],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=self.lr,
            eps=self.eps,
            pooling_mode=PoolingMode.NONE,
        )

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        offsets = torch.tensor([0, *counts], device=ids.device).cumsum(0)
        rows: Tensor = self.tbe(ids, offsets)
        return rows

    def set_lr(self, lr: float) -> None:
        self.tbe.set_learning_rate(lr)

    def tables(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (w.detach() for w in self.tbe.split_embedding_weights()), strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        return {name: state[0] for name, state in zip(self.names, self.tbe.split_optimizer_states(), strict=True)}


class TorchTables(LocalTables):
    """The same values without FBGEMM: one concatenated table, updated by a backward of our own."""

    def _allocate(self) -> None:
        total = sum(self.sizes)
        self.register_buffer("weights", torch.zeros(total, self.dim))
        self.register_buffer("squares", torch.zeros(total))
        starts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        # Autograd only runs a node's backward if one of its inputs wants a gradient.
        self.anchor = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.anchor)

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        starts = self.starts.repeat_interleave(torch.tensor(counts, device=ids.device), output_size=ids.shape[0])
        rows: Tensor = _RowwiseAdagradLookup.apply(self.anchor, self.weights, self.squares, ids + starts, self)
        return rows

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def tables(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights.split(self.sizes), strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.squares.split(self.sizes), strict=True))


class _RowwiseAdagradLookup(torch.autograd.Function):
    """Gathers rows; its backward sums the gradient by row and applies row-wise AdaGrad at once."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, weights: Tensor, squares: Tensor, rows: Tensor, tables: TorchTables
    ) -> Tensor:
        ctx.weights, ctx.squares, ctx.rows, ctx.tables = weights, squares, rows, tables
        return weights.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unique, inverse = torch.unique(ctx.rows, return_inverse=True)
        gradient = gradients[0].new_zeros(unique.shape[0], gradients[0].shape[1]).index_add(0, inverse, gradients[0])
        squares = ctx.squares[unique] + gradient.square().mean(1)
        ctx.squares[unique] = squares
        step = ctx.tables.lr / (squares.sqrt() + ctx.tables.eps)
        ctx.weights.index_add_(0, unique, gradient * -step.unsqueeze(1))
        return None, None, None, None, None
