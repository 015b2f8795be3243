"""Parallel backends: where parameters and examples live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from gemkit.plan.tables import TablePlanner


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_hsdp.ddp import DataParallel
    from gemkit_hsdp.hsdp import HybridSharded
    from gemkit_hsdp.single import SingleProcess

    return [SingleProcess, DataParallel, HybridSharded]


@hookimpl
def gemkit_table_planner() -> TablePlanner:
    from gemkit_hsdp.forecast import plan_tables

    return plan_tables
