"""Embedding tables of one process, with row-wise AdaGrad inside backward: FBGEMM's, or plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.config.memory import check_fits
from gemkit.data.schema import Schema
from gemkit.interfaces import EmbeddingTables
from gemkit_hsdp.initial import fill_rows
from gemkit_hsdp.pages import zeros_in_huge_pages
from gemkit_hsdp.segments import piece_lengths, pieces_on

CPU = torch.device("cpu")


class LocalTables(EmbeddingTables):
    """All tables of a schema in one process; subclasses look rows up and update them.

    The rows of all tables lie one after the other; table t's row i is row `starts[t] + i`.

    Args:
        schema: Tables, and which feature reads which.
        dim: D, the same for every table.
        lr, eps: Of row-wise AdaGrad (Duchi et al. 2011 with one accumulator a row: the mean over the row of
            the squared gradient).
        seed: Each table starts from (seed, its name): `fill_rows`.
        dtype: Of the rows, float32 or float16; what is looked up and the optimiser's state are float32 in any case.
        stochastic: Updated rows in float16 are rounded to one of their two neighbours by chance, so that they are
            right on average, and not to the nearest.
        device: Where FBGEMM's tables are made; others are moved.
    """

    starts: Tensor

    def __init__(
        self,
        schema: Schema,
        dim: int,
        lr: float,
        eps: float,
        seed: int,
        dtype: torch.dtype = torch.float32,
        stochastic: bool = False,
        device: torch.device = CPU,
    ) -> None:
        super().__init__()
        self.dim, self.lr, self.eps = dim, lr, eps
        self.dtype, self.stochastic, self.device = dtype, stochastic, device
        self.names = [t.name for t in schema.tables]
        self.sizes = [t.num_embeddings for t in schema.tables]
        self.features_of = {
            name: [f for f, table in schema.feature_tables.items() if table == name] for name in self.names
        }
        starts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        self._allocate()
        for name, weights in self.tables().items():
            fill_rows(weights, name, seed, dim)

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

    def _rows(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Where the rows lie among those of all tables. Shape: (n,) -> (n,)."""
        counted = torch.tensor(counts, device=ids.device)
        return ids + self.starts.repeat_interleave(counted, output_size=ids.shape[0])


def check_rows_fit(schema: Schema, dim: int, dtype: torch.dtype) -> None:
    """Whether one process has the memory for all tables.

    Raises:
        GemkitError: It has not.
    """
    rows = sum(t.num_embeddings for t in schema.tables)
    needed = rows * (dim * dtype.itemsize + 4)
    check_fits(needed, "the embedding tables", {"size.dim": dim, "rows of the tables": rows})


WHOLE_BYTES = 2**32
"""Below this many, FBGEMM's pooled kernel of CPUs can be used: it counts the bytes before a row in 32 bits, and beyond
them updates rows that nobody looked up (seen in fbgemm-gpu-cpu 1.8)."""


class FusedTables(LocalTables):
    """FBGEMM's table-batched embedding: lookup, backward and update fused.

    On a CPU all tables are one to FBGEMM, and each lookup is a bag of one row: its unpooled backward collects rows in
    hash maps there, which takes several times as long. On a GPU, and where one table would be too large, lookups are
    unpooled.

    Paper: FBGEMM GPU's TBE, EXACT_ROWWISE_ADAGRAD.
    """

    def _allocate(self) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        cuda = self.device.type == "cuda"
        location = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
        device = ComputeDevice.CUDA if cuda else ComputeDevice.CPU
        rows = sum(self.sizes)
        self.whole = not cuda and rows * self.dim * self.dtype.itemsize < WHOLE_BYTES
        self.tbe: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, self.dim, location, device) for size in ([rows] if self.whole else self.sizes)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=self.lr,
            eps=self.eps,
            pooling_mode=PoolingMode.SUM if self.whole else PoolingMode.NONE,
            weights_precision=SparseType.FP16 if self.dtype == torch.float16 else SparseType.FP32,
            output_dtype=SparseType.FP32,
            stochastic_rounding=self.stochastic,
        )

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        if self.whole:
            ids, offsets = self._rows(ids, counts), torch.arange(ids.shape[0] + 1)
        else:
            lengths = piece_lengths(counts, pieces_on(ids.device), ids.device)
            offsets = F.pad(lengths.cumsum(0), (1, 0))
        rows: Tensor = self.tbe(ids, offsets)
        return rows

    def set_lr(self, lr: float) -> None:
        self.tbe.set_learning_rate(lr)

    def tables(self) -> dict[str, Tensor]:
        return self._by_name([weights.detach() for weights in self.tbe.split_embedding_weights()])

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._by_name([state[0] for state in self.tbe.split_optimizer_states()])

    def _by_name(self, held: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, held[0].split(self.sizes) if self.whole else held, strict=True))


class TorchTables(LocalTables):
    """Plain PyTorch, with the values of FBGEMM's: one concatenated table, updated by a backward of its own.

    On a CPU it takes half to three quarters of the time of FBGEMM's (benchmarks/results/embedding_speed.json).
    """

    weights: Tensor
    squares: Tensor

    def _allocate(self) -> None:
        total = sum(self.sizes)
        self.register_buffer("weights", zeros_in_huge_pages(total, self.dim, dtype=self.dtype))
        self.register_buffer("squares", zeros_in_huge_pages(total))
        # Autograd only runs a node's backward if one of its inputs wants a gradient.
        self.anchor = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.anchor)

    def _lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        places = self._rows(ids, counts)
        rows: Tensor = _RowwiseAdagradLookup.apply(  # type: ignore[no-untyped-call]
            self.anchor, self.weights, self.squares, places, self
        )
        return rows

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def tables(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights.split(self.sizes), strict=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.squares.split(self.sizes), strict=True))


INT32_MAX = torch.iinfo(torch.int32).max


class _RowwiseAdagradLookup(torch.autograd.Function):
    """Gathers rows; its backward sums the gradient by row and applies row-wise AdaGrad at once."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, weights: Tensor, squares: Tensor, rows: Tensor, tables: TorchTables
    ) -> Tensor:
        ctx.weights, ctx.squares, ctx.rows, ctx.tables = weights, squares, rows, tables
        if weights.device.type != "cpu":
            return F.embedding(rows, weights).float()
        # Bags of one row: PyTorch's kernel for bags fetches rows ahead of time, the one for rows does not.
        return F.embedding_bag(rows, weights, torch.arange(rows.shape[0]), mode="sum").float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        update_rows(ctx.tables, ctx.weights, ctx.squares, ctx.rows, gradients[0])
        return None, None, None, None, None


def update_rows(
    tables: TorchTables,
    weights: Tensor,
    squares: Tensor,
    rows: Tensor,
    gradient: Tensor,
    chance: torch.Generator | None = None,
) -> None:
    """Row-wise AdaGrad, in place; what was looked up several times has its gradients added up first.

    Args:
        chance: Rounding by chance draws from here; None: from PyTorch's global random stream.

    Shape: weights (R, D), squares (R,), rows (n,), gradient (n, D).
    """
    # Stable, so that each sum has its order; numbers of 32 bits are sorted in half the time.
    in_order, places = (rows.int() if weights.shape[0] <= INT32_MAX else rows).sort(stable=True)
    unique, counts = torch.unique_consecutive(in_order, return_counts=True)
    unique = unique.long()
    # A bag holds a row's places: sums without copies of what they add up.
    gradient = F.embedding_bag(places, gradient, counts.cumsum(0) - counts, mode="sum")
    summed = torch.linalg.vector_norm(gradient, dim=1).square() / gradient.shape[1]
    summed += squares.index_select(0, unique)
    squares.index_copy_(0, unique, summed)
    gradient *= (-tables.lr / (summed.sqrt() + tables.eps)).unsqueeze(1)
    if weights.dtype == torch.float32:
        weights.index_add_(0, unique, gradient)
    else:
        values = gradient.add_(weights.index_select(0, unique))
        rounded = stochastic_half(values, chance) if tables.stochastic else values.half()
        weights.index_copy_(0, unique, rounded)


SMALLEST_EXPONENT = -13
"""Of `torch.frexp`, for float16's smallest normal number; below it the steps between numbers stay as they are."""
FRACTION_BITS = 11
"""Of float16, the leading one among them."""


def stochastic_half(values: Tensor, chance: torch.Generator | None = None) -> Tensor:
    """Each number as one of its two neighbours in float16, with odds that make it right on average.

    What float16 can hold stays as it is. Without `chance` it is drawn from PyTorch's global random stream, which
    checkpoints hold.

    Shape: any float32 -> the same.
    """
    step = torch.ldexp(
        torch.ones_like(values), torch.frexp(values).exponent.clamp(min=SMALLEST_EXPONENT) - FRACTION_BITS
    )
    below = (values / step).floor_()
    drawn = torch.rand(values.shape, generator=chance, device=values.device)
    up = drawn < values / step - below
    return ((below + up) * step).half()
