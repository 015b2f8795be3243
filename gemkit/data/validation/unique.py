"""Finds values that are in a column more than once, over all files of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import hashing, storage
from gemkit.data.arrays import as_array
from gemkit.data.validation.violation import Findings, Violation, slices

MAX_KEYS = 32_000_000
"""Keys of 64 bits that are sorted together. More of them take one pass over the files for each so many."""


def repeated(folder: Path, names: list[str], column: str, title: str) -> Iterator[Violation]:
    """Violations for the rows whose value another row has, in the same file or another.

    Values are compared by 64 bits, in parts of them that fit into memory: half a gigabyte at most.
    """
    num_rows = sum(storage.open_table(folder / n).num_rows for n in names)
    num_passes = max(1, -(-num_rows // MAX_KEYS))
    suspects: list[np.ndarray] = []
    for number in range(num_passes):
        parts = [k for name in names for _, _, k in _keys(folder / name, column, number, num_passes)]
        keys = np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))
        suspects.append(np.unique(keys[1:][keys[1:] == keys[:-1]]))
    suspect = np.concatenate(suspects)
    if not len(suspect):
        return
    # Equal keys are equal numbers, but of texts they may be a coincidence.
    rows_of: dict[str, list[np.ndarray]] = {}
    texts: list[pa.Array] = []
    for name in names:
        for low, part, keys in _keys(folder / name, column):
            at = np.flatnonzero(np.isin(keys, suspect))
            rows_of.setdefault(name, []).append(low + at)
            texts.append(part.take(pa.array(at)))
    counts = pc.value_counts(pa.concat_arrays(texts))
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    position = 0
    for name in names:
        findings = Findings(name)
        for rows in rows_of.get(name, []):
            part = texts[position]
            position += 1
            bad = np.flatnonzero(as_array(pc.is_in(part, value_set=twice)))
            values = part.take(pa.array(bad)).to_numpy(zero_copy_only=False)
            findings.add(column, f"{title} {{value}} is there more than once", rows[bad], "once over all files", values)
        yield from findings


def _keys(path: Path, column: str, number: int = 0, num_passes: int = 1) -> Iterator[tuple[int, pa.Array, np.ndarray]]:
    """First row, values and keys of each slice of a file; of the keys, those of one pass."""
    values = storage.open_table(path).column(column)
    for low, high in slices(len(values)):
        part = storage.one_piece(values.slice(low, high - low))
        keys = hashing.hashes(part) if pa.types.is_string(part.type) else as_array(part).view(np.uint64)
        if num_passes > 1:
            mixed = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
            keys = keys[mixed % np.uint64(num_passes) == number]
        yield low, part, keys
