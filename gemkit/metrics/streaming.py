"""Metrics in bounded memory, for more predictions than fit: AUC from a histogram, the rest from sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gemkit.data.batch import Batch
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.metrics import functional as M
from gemkit.metrics.collector import Gather, NeBase, checked_base_rates, ne_entries

LOGIT_RANGE = 20.0
"""Logits beyond +-20 (a probability of 2e-9) share the outermost bins."""

_SUMS = ("weight", "label", "prediction", "loss", "examples", "positives", "not_finite")


class StreamingMetrics:
    """`MetricCollector` without keeping predictions: same interface, fewer metrics, other names.

    Logloss, NE, calibration and ECE are the same up to rounding. AUC is ``auc_histogram``: predictions fall
    into `num_bins` bins of equal width in log-odds (equal width in probability would put all of a rare
    event's predictions into a few bins), and those in one bin count as ties. ``auc_histogram_error`` bounds
    the distance to the exact AUC; it is known from the histogram. PR-AUC and gAUC are not offered: the
    latter needs each user's predictions together.

    Memory: 16 bytes a bin, for each task and surface; 256 KiB with the default.
    """

    def __init__(
        self,
        schema: Schema,
        base_rates: Mapping[str, float | None] | None = None,
        ne_base: NeBase = "train",
        num_bins: int = 16384,
    ) -> None:
        if num_bins < 2:
            raise GemkitError(f"num_bins = {num_bins} is out of range", where="num_bins", allowed=">= 2")
        self.schema = schema
        self.ne_base = ne_base
        self.num_bins = num_bins
        self.base_rates = checked_base_rates(schema, base_rates, ne_base)
        self._state: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets what was collected."""
        surfaces, tasks = len(self.schema.surfaces), len(self.schema.tasks)
        self._state = {
            "sums": torch.zeros(surfaces, tasks, len(_SUMS), dtype=torch.float64),
            "ece": torch.zeros(surfaces, tasks, 3, M.ECE_BINS, dtype=torch.float64),
            "histogram": torch.zeros(surfaces, tasks, 2, self.num_bins, dtype=torch.float64),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Everything collected so far."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what was collected."""
        self._state = {name: values.clone() for name, values in state.items()}

    @torch.no_grad()
    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch; the sums live on the device of the logits.

        Shape: logits (B, P).
        """
        state = self._state = {name: values.to(logits.device) for name, values in self._state.items()}
        raw = logits.detach().double()
        masks = batch.masks.bool() & (batch.weights > 0)[:, None]
        not_finite = ~torch.isfinite(raw) & masks
        z = torch.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
        y = batch.labels.double()
        w = torch.where(masks, batch.weights.double()[:, None], 0.0)
        p = torch.sigmoid(z)
        loss = F.binary_cross_entropy_with_logits(z, y, reduction="none")
        counts = masks.double()
        # (B, P, len(_SUMS)), summed into the rows of each example's surface
        sums = torch.stack([w, w * y, w * p, w * loss, counts, counts * y, not_finite.double()], dim=2)
        state["sums"].index_add_(0, batch.surface, sums)

        tasks = y.shape[1]
        cell = batch.surface[:, None] * tasks + torch.arange(tasks, device=y.device)  # (B, P)
        ece_bin = (p * M.ECE_BINS).long().clamp_(0, M.ECE_BINS - 1)
        for row, values in enumerate((w, w * p, w * y)):
            index = (cell * 3 + row) * M.ECE_BINS + ece_bin
            state["ece"].view(-1).index_add_(0, index.flatten(), values.flatten())
        position = (z + LOGIT_RANGE) / (2 * LOGIT_RANGE) * self.num_bins
        auc_bin = position.clamp_(0, self.num_bins - 1).long()
        for row, values in enumerate((w * y, w * (1 - y))):
            index = (cell * 2 + row) * self.num_bins + auc_bin
            state["histogram"].view(-1).index_add_(0, index.flatten(), values.flatten())

    def compute(self, gather: Gather | None = None) -> dict[str, Any]:
        """Task -> metric -> value, ready for JSON; undefined values are None.

        Args:
            gather: Collects the sums of all ranks; every rank must call `compute`.

        Raises:
            GemkitError: A prediction was NaN or infinite.
        """
        state = self._state
        if gather is not None:
            state = {name: gather(values[None]).sum(0) for name, values in state.items()}
        state = {name: values.cpu() for name, values in state.items()}
        not_finite = int(state["sums"][..., _SUMS.index("not_finite")].sum())
        if not_finite:
            raise GemkitError(
                f"the model predicts NaN or infinity for {not_finite} labels",
                where="predictions",
                fix="lower optimizer.lr, lower train.clip_norm, or use train.precision=fp32",
            )
        result = {}
        for p, task in enumerate(self.schema.task_names):
            cells = {name: values[:, p] for name, values in state.items()}
            result[task] = self._metrics({name: values.sum(0) for name, values in cells.items()}, task)
            if len(self.schema.surfaces) > 1:
                result[task]["surfaces"] = {
                    surface: self._metrics({name: values[s] for name, values in cells.items()}, task)
                    for s, surface in enumerate(self.schema.surfaces)
                }
        return result

    def _metrics(self, cell: Mapping[str, Tensor], task: str) -> dict[str, Any]:
        sums = dict(zip(_SUMS, cell["sums"].tolist(), strict=True))
        weight, label = sums["weight"], sums["label"]
        loss = sums["loss"] / weight if weight > 0 else None
        label_rate = label / weight if weight > 0 else None
        auc, error = auc_from_histogram(cell["histogram"])
        return {
            "auc_histogram": auc,
            "auc_histogram_error": error,
            "auc_histogram_bins": self.num_bins,
            "logloss": loss,
            **ne_entries(loss, label_rate, self.base_rates.get(task), self.ne_base),
            "calibration": sums["prediction"] / label if label > 0 else None,
            "ece": M.ece_from_bins(cell["ece"]),
            "ece_bins": M.ECE_BINS,
            "label_rate": label_rate,
            "examples": int(sums["examples"]),
            "positives": int(sums["positives"]),
        }


def auc_from_histogram(histogram: Tensor) -> tuple[float | None, float | None]:
    """AUC with all predictions of a bin tied, and how far the exact AUC can be from it.

    Pairs in different bins are in the right order for certain; a pair in one bin counts one half and is
    worth 0 to 1, so the error is at most half the share of such pairs.

    Shape: histogram (2, bins), weights of positives and of negatives, lowest scores first.
    """
    positives, negatives = histogram
    pairs = float(positives.sum() * negatives.sum())
    if pairs <= 0:
        return None, None
    below = negatives.cumsum(0) - negatives
    tied = float((positives * negatives).sum())
    return (float((positives * below).sum()) + tied / 2) / pairs, tied / 2 / pairs
