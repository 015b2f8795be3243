"""Teacher logs without a teacher: what transfer strategies are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.transfer import codes
from gemkit.transfer.log import Rows, TeacherLog


def write_log(
    folder: Path,
    data: Dataset,
    logits: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
    code_width: int | None = 4,
    code_bits: int = 8,
    snapshot_s: int | None = None,
    seed: int = 0,
) -> TeacherLog:
    """A log that answers examples of a data set, in two parts.

    Args:
        logits: (n, P) float32; None: by chance.
        rows: (n,) the examples; None: all.
        code_width: Numbers in each code, made by chance; None: no codes.
        snapshot_s: None: before the first example.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(data.num_examples) if rows is None else rows
    if logits is None:
        logits = rng.normal(size=(len(rows), len(data.schema.tasks)))
    space = None
    if code_width is not None:
        readouts = rng.normal(size=(max(len(rows), 4 * code_width), 2 * code_width)).astype(np.float32)
        space = codes.fit(readouts, code_width, code_bits)
    log = TeacherLog.create(folder, data.schema.task_names, data.schema.name, data.origin, space)
    snapshot_s = data.first_s - 1 if snapshot_s is None else snapshot_s
    for half in np.array_split(np.arange(len(rows)), 2):
        ids, times, groups = (
            data.columns[name][rows[half]].astype(np.int64)
            for name in (storage.EXAMPLE_ID, storage.TIMESTAMP, storage.GROUP)
        )
        code = np.zeros((len(half), 0), np.uint8) if space is None else space.pack(space.encode(readouts[half]))
        log.append(Rows(ids, times, groups, logits[half].astype(np.float32), code), "by-chance", "", snapshot_s)
    return log
