"""What a model costs: FLOPs, parameters and saved activations, module by module, told without running it."""

from __future__ import annotations

from gemkit.cost.count import BlockCost, RunCost, TableCost, count, middle_batch, model_cost
from gemkit.cost.meter import CostMeter, ModuleCost
from gemkit.cost.peak import matmul_peak

__all__ = [
    "BlockCost",
    "CostMeter",
    "ModuleCost",
    "RunCost",
    "TableCost",
    "count",
    "matmul_peak",
    "middle_batch",
    "model_cost",
]
