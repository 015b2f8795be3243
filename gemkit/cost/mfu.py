"""MFU: which share of the machine's matrix-product peak the training of a run reached."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemkit.config.run import RunConfig
from gemkit.cost.count import count, middle_batch
from gemkit.cost.peak import matmul_peak
from gemkit.data.loader import Loader
from gemkit.registry import Registry
from gemkit.session import Model

SMALL = 10_000_000
"""Parameters up to which a CPU computes one more step faster than it counts one with fake tensors."""


def utilisation(
    model: Model, registry: Registry, loader: Loader, device: str, examples_per_s: float, say: Callable[[str], None]
) -> dict[str, float | None]:
    """`flops_per_example`, `matmul_peak_flops_per_s` and `mfu`, as docs/metrics.md defines them.

    Args:
        loader: Of the training split.
        device: Type of the device that trained `examples_per_s`.
        say: Told why, if the model cannot be counted.
    """
    peak = matmul_peak(device, _dtype(model.run, device), torch.get_num_threads())
    flops = mfu = None
    fake = device != "cpu" or model.num_dense_parameters > SMALL
    try:
        batch = middle_batch(loader)
        batch = batch if model.features is None else model.features(batch)
        flops = count(model.run, model.schema, registry, batch, fake).flops_per_example
        mfu = examples_per_s * flops / peak
    except Exception as error:  # whatever a plugin cannot do here, the trained model and its metrics are worth more
        say(f"note: no MFU, because a step could not be counted: {type(error).__name__}: {error}")
    return {"flops_per_example": flops, "matmul_peak_flops_per_s": peak, "mfu": mfu}


def _dtype(run: RunConfig, device: str) -> torch.dtype:
    """In which the peak is measured: a GPU's, that of the run; a CPU's, fp32, as few have more to give in bf16."""
    return torch.bfloat16 if run.train.precision == "bf16" and device == "cuda" else torch.float32
