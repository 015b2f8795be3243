"""FLOPs of single operators: PyTorch's formulas, and those that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

QUIET = ("aten", "prim", "prims", "higher_order")
"""Namespaces whose operators are no matrix products unless there is a formula that says otherwise."""


def flops_of(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int | None:
    """FLOPs of one call; None if nobody has said how to count an operator that is not PyTorch's own.

    Two FLOPs for each multiply-add of a matrix product, a convolution or an attention. Everything else is 0:
    normalisations, activations, sums, gathers.
    """
    packet = getattr(operator, "overloadpacket", operator)
    # Asked anew for each call: a kernel registers its formula when it is imported.
    formula: Callable[..., int] | None = flop_registry.get(packet) or _FORMULAS.get(packet)
    if formula is not None:
        return formula(*args, **kwargs, out_val=out)
    return 0 if getattr(operator, "namespace", "aten") in QUIET else None


def _matrix_vector(matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


def _added_matrix_vector(bias: Tensor, matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


def _dot(a: Tensor, b: Tensor, **_: Any) -> int:
    return 2 * a.numel()


def _added_outer(bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    return 2 * a.numel() * b.numel()


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten.dot: _dot,
    aten.vdot: _dot,
    aten.addr: _added_outer,
    # The fused attention of a CPU, counted as that of a GPU is.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
