"""TensorBoard event files, if the run asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError
from gemkit.runs.curves import flatten


class TensorBoardWriter:
    """Writes the rows of metrics.jsonl as scalars ``<split>/<task>/<metric>`` too.

    Raises:
        GemkitError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise GemkitError(
                "train.tensorboard is on, but TensorBoard is not installed",
                where="train.tensorboard",
                fix='pip install "gemkit[tensorboard]", or train.tensorboard=false',
            ) from error
        self._writer = SummaryWriter(str(folder))

    def append(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes a row; the same arguments as `RunFolder.append`."""
        for task, metric, value in flatten(values):
            tag = "/".join(part for part in (split, task, metric) if part)
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()
