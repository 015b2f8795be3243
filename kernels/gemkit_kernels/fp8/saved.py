"""Activations saved for the backward pass in FP8."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gemkit_kernels.fp8.op import KINDS, fp8_dequantise, fp8_quantise

LEAST = 2**16
"""Numbers in the smallest tensor that is saved in FP8, unless told otherwise."""

NARROWEST = 128
"""Numbers that share a scale at least: last axes are joined until there are so many."""


class _Place(NamedTuple):
    """Which numbers of which storage: all from `start` on in the order of memory, or those of some strides."""

    storage: int
    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    kind: torch.dtype
    version: int


@dataclasses.dataclass(eq=False)
class _Small:
    """Numbers in FP8. `origin` keeps the storage's address from being given to another one."""

    values: Tensor
    scales: Tensor
    origin: StorageWeakRef


class _Untouched(NamedTuple):
    tensor: Tensor
    version: int


class _Saved(NamedTuple):
    """One saved tensor: a view of `small`, with `strides`; `gaps` are those that it is to come back with, if others."""

    small: _Small
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    gaps: tuple[int, ...] | None


@contextmanager
def saved_in_fp8(
    keep: Iterable[Tensor] | Callable[[], Iterable[Tensor]] = (),
    least: int = LEAST,
    tiled: bool = False,
    same_strides: bool = False,
) -> Iterator[None]:
    """Large activations of what runs inside are saved for its backward pass in FP8, in a half of bf16's memory.

    The forward pass itself is exact; the backward pass sees activations rounded to 4 significant bits, in bf16, fp16 or
    fp32 as they were. A tensor that several operations save is kept once. What lives anyway, because something else
    holds it, is stored a second time: exclude it by `keep`.

    A tensor that is not in FP8 and that was changed in place in the meantime is an error in the backward pass, as ever.

    Args:
        keep: Not touched, nor any view of them: give the parameters, `model.parameters()`. Autograd hands on saved
            tensors without saying whether they are parameters. Copies of weights that autocast has made cannot be told
            from activations. A function is asked for them at each large tensor: give one if they change, as the
            weights that FSDP has gathered do.
        least: Numbers in the smallest tensor that is touched. It has two axes at least, and is of bf16, fp16 or fp32.
        tiled: A scale for each tile of 32 x 32 and not for each row.
        same_strides: Tensors come back with their strides, gaps included, and not without gaps: give True if code of
            `torch.compile` runs inside, which insists on them.
    """
    always = set() if callable(keep) else _storages(keep)
    known: weakref.WeakValueDictionary[_Place, _Small] = weakref.WeakValueDictionary()

    def pack(x: Tensor) -> _Untouched | _Saved:
        untouched = _Untouched(x, x._version)
        if x.dtype not in KINDS or x.dim() < 2 or x.numel() < least or x.layout != torch.strided:
            return untouched
        axes, memory, storage = *_in_memory(x), x.untyped_storage()
        if memory.numel() < least or storage._cdata in (_storages(keep()) if callable(keep) else always):
            return untouched
        sizes, strides = ((memory.numel(),), (1,)) if memory.is_contiguous() else (memory.shape, memory.stride())
        place = _Place(storage._cdata, int(x.storage_offset()), tuple(sizes), tuple(strides), x.dtype, x._version)
        small = known.get(place)
        if small is None:
            small = known[place] = _Small(*fp8_quantise(_rows(memory), tiled), StorageWeakRef(storage))
        # Without gaps, and what is repeated is repeated.
        dense, stride = [0] * x.dim(), 1
        for axis in reversed(axes):
            dense[axis], stride = stride, stride * x.shape[axis]
        gaps = x.stride() if same_strides and any(x.stride(i) != dense[i] for i in axes) else None
        return _Saved(small, x.dtype, x.shape, tuple(dense), gaps)

    def unpack(saved: _Untouched | _Saved) -> Tensor:
        if isinstance(saved, _Untouched):
            # Autograd itself does not look any more once there are hooks.
            if saved.tensor._version != saved.version:
                raise RuntimeError("a tensor that the backward pass needs has been changed in place")
            return saved.tensor
        numbers = fp8_dequantise(saved.small.values, saved.small.scales, saved.dtype)
        numbers = numbers.as_strided(saved.shape, saved.strides)
        if saved.gaps is None:
            return numbers
        with_gaps = torch.empty_strided(saved.shape, saved.gaps, dtype=saved.dtype, device=numbers.device)
        whole = tuple(0 if stride == 0 else slice(None) for stride in saved.gaps)
        with_gaps[whole] = numbers[whole]
        return with_gaps

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {x.untyped_storage()._cdata for x in tensors}


def _in_memory(x: Tensor) -> tuple[list[int], Tensor]:
    """The axes that are neither repeated nor single, from the longest stride to the shortest; and x with these only."""
    axes = [i for i in range(x.dim()) if x.stride(i) and x.shape[i] > 1]
    axes.sort(key=x.stride, reverse=True)
    return axes, x.as_strided([x.shape[i] for i in axes], [x.stride(i) for i in axes])


def _rows(memory: Tensor) -> Tensor:
    """Shape: any -> (R, W)."""
    width, axis = 1, memory.dim()
    while axis > 1 and width < NARROWEST:
        axis -= 1
        width *= memory.shape[axis]
    return memory.reshape(-1, width)
