"""How a run is called: its sentence, its folder's name, and what its user should know about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemkit.component import KINDS, NONE
from gemkit.config.layers import LAYERED
from gemkit.config.run import RunConfig


def sentence(run: RunConfig) -> str:
    """``data=movielens1m ... parallel=single``: the component of every kind."""
    words = [f"{kind}={'|'.join(_names(run, kind))}" for kind in KINDS]
    return " ".join(words)


def slug(run: RunConfig) -> str:
    """Tells the run's folder apart from others."""
    names = ["+".join(_names(run, kind)) for kind in ("interaction", "sequence", "cross")]
    names = [name for name in names if name != NONE]
    return "-".join([run.data.folder_name, *(names or ["plain"])]) + f"_s{run.seed}"


def _names(run: RunConfig, kind: str) -> list[str]:
    """The components of a kind, each once; of several blocks' in their order."""
    configs = [getattr(block, kind) for block in run.blocks] if kind in LAYERED else [getattr(run, kind)]
    return list(dict.fromkeys(config.name if config else NONE for config in configs))


def notes(run: RunConfig, device: str) -> list[str]:
    """What is allowed, and perhaps not meant."""
    found = []
    if device == "cpu" and run.train.precision == "bf16":
        found.append("note: bf16 on a CPU without AMX or AVX512 is many times slower than fp32")
    if run.cross is not None and not run.reads_events:
        found.append(f"note: cross={run.cross.name} does nothing here, because sequence=none gives it no events")
    if run.loader.order == "time" and run.train.epochs > 1:
        found.append("note: loader.order=time is meant for one pass; every epoch comes in the same order")
    return found


def key_metrics(metrics: Mapping[str, Any]) -> str:
    """``auc 0.7950, logloss 0.5430, ne 0.7978``, as far as they are defined."""
    shown = ("auc", "logloss", "ne")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in shown if metrics.get(name) is not None)
