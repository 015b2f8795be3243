"""Small steps between Arrow columns and NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.schema import DenseFeature


def is_list(kind: Any) -> bool:
    """Whether a column of this type holds a list in each row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def as_array(column: pa.Array) -> np.ndarray:
    """An Arrow array without empty cells as a NumPy array."""
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def transformed(values: np.ndarray, transform: str) -> np.ndarray:
    """A dense column after its `DenseFeature.transform`, in float64."""
    values = values.astype(np.float64)
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of several runs starts and ends. Shape: (n,) -> (n+1,) int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The positions starts[0] .. ends[0]-1, starts[1] .. ends[1]-1, ..., back to back."""
    lengths = ends - starts
    offsets = offsets_of(lengths)
    positions: np.ndarray = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return positions


def first_not_older(times: np.ndarray, start: np.ndarray, end: np.ndarray, now: np.ndarray) -> np.ndarray:
    """In each ascending run times[start:end], the first row that is not older than `now`. Shape: (n,) each, int64."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    while (open_ := low < high).any():
        middle = np.where(open_, (low + high) // 2, 0)
        older = open_ & (times[middle] < now)
        low, high = np.where(older, middle + 1, low), np.where(open_ & ~older, middle, high)
    return low


def standardised(values: np.ndarray, feature: DenseFeature) -> np.ndarray:
    """A dense column as the model reads it. Shape: (rows,) float32."""
    with np.errstate(over="ignore"):
        # In float64 until it is standardised: a timestamp has more digits than a float32.
        result: np.ndarray = ((transformed(values, feature.transform) - feature.mean) / feature.std).astype(np.float32)
    return result


def flat(column: pa.Array) -> pa.Array:
    """The entries of lists, back to back, with text as one kind of text."""
    flat = pc.list_flatten(column)
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    return flat.cast(pa.string()) if is_text(flat.type) else flat


def short(text: str) -> str:
    """A cell as an error shows it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
