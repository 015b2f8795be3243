"""The test predictions of a run as a safetensors file: what resampling the test examples needs. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

from gemkit.errors import GemkitError
from gemkit.runs.files import replacing

PREDICTIONS = "predictions.safetensors"
FORMAT = "gemkit-predictions"


class Predictions(NamedTuple):
    """N test examples in order of their ids.

    Attributes:
        tasks: Names of the P tasks.
        example_id: (N,) int64.
        logits: (N, P) float32.
        labels, masks: (N, P) bool; a label counts where its mask is set.
        weights: (N,) float32.
        group: (N,) int64, the gAUC group, mostly the user.
    """

    tasks: tuple[str, ...]
    example_id: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    group: np.ndarray


def save_predictions(run: Path, tasks: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
    """Writes the predictions of an evaluation into a run folder.

    Args:
        rows: As `MetricCollector.rows` gives them.

    Raises:
        GemkitError: The file cannot be written.
    """
    # Rows without any label that counts are left out: among them those that fill up the ranks' shares.
    known = np.flatnonzero(rows["masks"].any(axis=1))
    order = known[np.argsort(rows["example_id"][known], kind="stable")]
    stored = {name: np.ascontiguousarray(rows[name][order]) for name in Predictions._fields[1:]}
    header = {"format": FORMAT, "tasks": json.dumps(list(tasks))}
    with replacing(run / PREDICTIONS) as temporary:
        save_file(stored, temporary, metadata=header)


def load_predictions(run: Path) -> Predictions | None:
    """What `save_predictions` wrote; None if the run saved none.

    Raises:
        GemkitError: The file is damaged, or something else.
    """
    path = run / PREDICTIONS
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header: dict[str, Any] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in Predictions._fields[1:]}
        tasks = json.loads(header["tasks"])
        if header["format"] != FORMAT or arrays["logits"].shape != (len(arrays["example_id"]), len(tasks)):
            raise ValueError("it holds something else")
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise GemkitError(
            f"{PREDICTIONS} cannot be read: {error}", where=str(path), fix="remove the run folder, and run it again"
        ) from error
    return Predictions(tuple(str(task) for task in tasks), **arrays)
