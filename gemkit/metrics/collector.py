"""Exact metrics of an evaluation: keeps every prediction (about 40 bytes an example with one task)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gemkit.data.batch import Batch
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.metrics import functional as M

NeBase = Literal["train", "eval"]
Gather = Callable[[Tensor], Tensor]
"""Rows of all ranks, in order of rank; every rank brings equally many. `ParallelBackend.all_gather`."""


class MetricCollector:
    """Metrics per task, and per surface if there are several.

    Args:
        base_rates: Task -> label rate of the training split; needed if `ne_base` is "train".
        ne_base: Whose label rate NE is normalised by. "train": the training split's, also on each surface;
            "eval": that of the very examples evaluated, on a surface that of the surface.

    Raises:
        GemkitError: `ne_base` is "train" and a task has no base rate.
    """

    def __init__(
        self, schema: Schema, base_rates: Mapping[str, float | None] | None = None, ne_base: NeBase = "train"
    ) -> None:
        self.schema = schema
        self.ne_base = ne_base
        self.base_rates = checked_base_rates(schema, base_rates, ne_base)
        self._parts: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch. Nothing is copied between devices before `compute`, so no step waits for it.

        Shape: logits (B, P).
        """
        self._parts.append(
            {
                "logits": logits.detach().float(),
                "labels": batch.labels.bool(),
                "masks": batch.masks.bool(),
                "weights": batch.weights,
                "surface": batch.surface,
                "group": batch.group,
                "example_id": batch.example_id,
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything collected so far, one row an example."""
        parts = self._parts or [self._no_rows()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what was collected."""
        self._parts = [dict(state)]

    def reset(self) -> None:
        """Forgets what was collected."""
        self._parts = []

    def compute(self, gather: Gather | None = None) -> dict[str, Any]:
        """Task -> metric -> value, ready for JSON; undefined values are None.

        Args:
            gather: Collects the rows of all ranks; then every rank must call `compute`, and gets the metrics
                of all ranks' examples.

        Raises:
            GemkitError: A prediction is NaN or infinite, or nothing was collected.
        """
        state = self.rows(gather)
        if not len(state["weights"]):
            raise GemkitError("there is nothing to evaluate: the split holds no examples", where="split")
        _check_finite(state["logits"], state["masks"], state["example_id"])
        return {task: self._task(state, p, task) for p, task in enumerate(self.schema.task_names)}

    def rows(self, gather: Gather | None = None) -> dict[str, Tensor]:
        """Everything collected so far, on the CPU; with `gather`, that of all ranks and rows whose masks are all 0."""
        state = self.state_dict()
        if gather is not None:
            state = _gather_rows(state, gather)
        return {name: values.cpu() for name, values in state.items()}

    def _no_rows(self) -> dict[str, Tensor]:
        cells, ids = (0, len(self.schema.tasks)), torch.zeros(0, dtype=torch.int64)
        masks = torch.zeros(cells, dtype=torch.bool)
        rows = {"logits": torch.zeros(cells), "labels": masks, "masks": masks, "weights": torch.zeros(0)}
        return rows | {"surface": ids, "group": ids, "example_id": ids}

    def _task(self, state: Mapping[str, Tensor], p: int, task: str) -> dict[str, Any]:
        counts = state["masks"][:, p] & (state["weights"] > 0)
        rows = {
            "logits": state["logits"][:, p].double(),
            "labels": state["labels"][:, p].double(),
            "weights": state["weights"].double(),
            "group": state["group"],
            "surface": state["surface"],
        }
        rows = {name: values[counts] for name, values in rows.items()}
        result = self._metrics(rows, task)
        if len(self.schema.surfaces) > 1:
            result["surfaces"] = {}
            for index, name in enumerate(self.schema.surfaces):
                here = rows["surface"] == index
                result["surfaces"][name] = self._metrics({k: v[here] for k, v in rows.items()}, task)
        return result

    def _metrics(self, rows: Mapping[str, Tensor], task: str) -> dict[str, Any]:
        z, y, w = rows["logits"], rows["labels"], rows["weights"]
        p = torch.sigmoid(z)
        loss = M.logloss(z, y, w)
        label_rate = float((y * w).sum() / w.sum()) if len(w) else None
        result = {
            "auc": M.auc(z, y, w),
            "logloss": loss,
            **ne_entries(loss, label_rate, self.base_rates.get(task), self.ne_base),
            "calibration": M.calibration(p, y, w),
            "ece": M.ece(p, y, w),
            "ece_bins": M.ECE_BINS,
            "pr_auc": M.pr_auc(z, y, w),
        }
        if self.schema.group is not None:
            grouped = M.gauc_all(z, y, rows["group"], w)
            result |= {
                "gauc_impressions": grouped["impressions"].value,
                "gauc_positives": grouped["positives"].value,
                "gauc_unweighted": grouped["none"].value,
                "gauc_groups_used": grouped["none"].groups_used,
                "gauc_groups_skipped": grouped["none"].groups_skipped,
            }
        return result | {"label_rate": label_rate, "examples": len(w), "positives": int(y.sum())}


def checked_base_rates(
    schema: Schema, base_rates: Mapping[str, float | None] | None, ne_base: NeBase
) -> dict[str, float | None]:
    """The base rates as a dict.

    Raises:
        GemkitError: `ne_base` is "train" and a task is missing. (A rate of None is allowed: the training
            split knows no label of that task, and NE is undefined.)
    """
    rates = dict(base_rates or {})
    missing = [task for task in schema.task_names if task not in rates]
    if ne_base == "train" and missing:
        raise GemkitError(
            f"NE is to be normalised by the training split's label rate, which is unknown for {', '.join(missing)}",
            where="ne_base",
            allowed="train (with a base rate for each task) | eval",
            fix="build the data set again, or use the evaluated examples' own label rate: ne_base=eval",
        )
    return rates


def ne_entries(
    logloss: float | None, label_rate: float | None, train_rate: float | None, ne_base: NeBase
) -> dict[str, Any]:
    """NE together with what it is normalised by: one is worth nothing without the other."""
    base_rate = train_rate if ne_base == "train" else label_rate
    return {"ne": M.ne(logloss, base_rate), "ne_base": ne_base, "base_rate": base_rate}


def _check_finite(logits: Tensor, masks: Tensor, example_id: Tensor) -> None:
    bad = (~torch.isfinite(logits) & masks).any(dim=1)
    if bool(bad.any()):
        ids = ", ".join(str(int(i)) for i in example_id[bad][:5])
        raise GemkitError(
            f"the model predicts NaN or infinity for {int(bad.sum())} of {int(masks.any(dim=1).sum())} examples",
            where=f"example ids {ids}" + (", ..." if int(bad.sum()) > 5 else ""),
            fix="lower optimizer.lr, lower train.clip_norm, or use train.precision=fp32",
        )


def _gather_rows(state: Mapping[str, Tensor], gather: Gather) -> dict[str, Tensor]:
    """`gather` wants equally many rows of every rank: all pad to the longest, with rows whose mask is 0."""
    n = len(state["weights"])
    longest = int(gather(torch.tensor([n], device=state["weights"].device)).max())
    result = {}
    for name, values in state.items():
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[:n] = values
        result[name] = gather(padded)
    return result
