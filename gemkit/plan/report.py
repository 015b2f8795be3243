"""Plans as plain data and as tables for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from gemkit.config.fields import to_mapping
from gemkit.config.run import RunConfig
from gemkit.plan.assumptions import Assumptions, Hypothetical
from gemkit.plan.gpus import Gpu
from gemkit.plan.plan import Plan
from gemkit.plan.workload import Workload
from gemkit.runs.tables import print_table
from gemkit.runs.wording import sentence


def as_json(
    run: RunConfig, work: Workload, gpu: Gpu, assumptions: Assumptions, tables: Hypothetical, plans: list[Plan]
) -> dict[str, Any]:
    """Everything that was assumed and everything that follows; bytes, seconds, one rank, one step."""
    return {
        "run": sentence(run),
        "gpu": dataclasses.asdict(gpu),
        "assumptions": to_mapping(assumptions),
        "hypothetical_tables": None if tables.embedding_params is None else to_mapping(tables),
        "model": {
            "precision": work.precision,
            "dense_params": work.dense_params,
            "table_params": work.table_params,
            "tables": len(work.tables),
            "lookups_per_example": work.lookups,
            "flops_per_example": work.flops,
            "recomputed_flops_per_example": work.recomputed_flops,
            "activation_bytes_per_example": work.activation_bytes,
            "cast_bytes": work.cast_bytes,
            "largest_unit_params": max(work.units.values(), default=0),
        },
        "plans": [_plan(plan, assumptions) for plan in plans],
    }


def _plan(plan: Plan, assumptions: Assumptions) -> dict[str, Any]:
    held = plan.placement.bytes_of(assumptions.table_dtype)
    step, mesh = plan.step, plan.mesh
    return {
        "world_size": mesh.world_size,
        "mesh": {"dp_replicate": mesh.dp_replicate, "dp_shard": mesh.dp_shard}
        | {"table_groups": mesh.table_groups, "table_group": mesh.table_group},
        "local_batch": plan.local_batch,
        "sharding": {
            "planner": plan.placement.planner,
            "tables": plan.placement.kinds,
            "fullest_bytes": max(held, default=0),
            "mean_bytes": sum(held) / len(held),
            "busiest_over_mean": plan.placement.imbalance,
            "refused": plan.placement.refused,
        },
        "memory_bytes": dataclasses.asdict(plan.memory) | {"total": plan.memory.total, "usable": plan.usable_bytes},
        "sent_bytes": dataclasses.asdict(plan.sent),
        "network_s": dataclasses.asdict(plan.seconds),
        "step_s": {
            "products": step.products,
            "optimizer": step.optimizer,
            "lookups": step.lookups,
            "fixed": step.fixed,
            "compute": step.compute,
            "exposed": step.exposed,
            "total": step.total,
        },
        "examples_per_s": plan.examples_per_s,
        "mfu": step.mfu,
        "scaling_ratio": step.scaling,
        "does_not_fit": None if plan.misfit is None else dataclasses.asdict(plan.misfit),
    }


def print_plans(facts: dict[str, Any], console: Console) -> None:
    """`as_json`'s facts for people: a column for each world size, and every assumption below."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    model, plans = facts["model"], facts["plans"]
    line(facts["run"])
    line(
        f"{model['dense_params']:,} dense parameters, {model['table_params']:,} in {model['tables']:,} tables; "
        f"{model['flops_per_example'] / 1e9:,.3f} GFLOP and {model['lookups_per_example']:,.1f} lookups per example\n"
    )
    header = ["", *(f"{plan['world_size']:,}" for plan in plans)]
    for title, rows in (
        ("GPUs", [[name, *map(show, plans)] for name, show in _LAYOUT]),
        ("memory of the fullest GPU, GB", _rows(plans, "memory_bytes", 1e-9)),
        ("sent by a GPU in a step, MB", _rows(plans, "sent_bytes", 1e-6)),
        ("network, each collective alone, ms", _rows(plans, "network_s", 1e3)),
        ("step, ms", _rows(plans, "step_s", 1e3)),
        ("speed", [[name, *map(show, plans)] for name, show in _SPEED]),
    ):
        print_table(title, header, rows, console)
    for plan in plans:
        misfit = plan["does_not_fit"]
        if misfit:
            missing = f": {misfit['missing_bytes'] / 1e9:,.1f} GB too much" if misfit["missing_bytes"] else ""
            line(f"{plan['world_size']:,} GPUs: does not fit: {misfit['what']}{missing}; {misfit['fix']}")
        else:
            line(f"{plan['world_size']:,} GPUs: everything fits")
    line(f"\ntables placed by: {', '.join(dict.fromkeys(plan['sharding']['planner'] for plan in plans))}")
    line("assumed (each can be set by an option of its name):")
    for name, value in _assumed(facts).items():
        line(f"  {name.replace('_', '-'):<20} {value}")
    line("step = max(compute, hidden communication) + the rest; scaling ratio = compute / step")


_LAYOUT = [
    ("dense: replicas x shards", lambda p: f"{p['mesh']['dp_replicate']:,} x {p['mesh']['dp_shard']:,}"),
    ("tables: replicas x shards", lambda p: f"{p['mesh']['table_groups']:,} x {p['mesh']['table_group']:,}"),
    ("examples of each GPU", lambda p: f"{p['local_batch']:,}"),
    ("tables by sharding", lambda p: ", ".join(f"{n:,} {kind}" for kind, n in p["sharding"]["tables"].items()) or "-"),
    ("tables, fullest GPU, GB", lambda p: f"{p['sharding']['fullest_bytes'] / 1e9:,.2f}"),
    ("tables, mean GPU, GB", lambda p: f"{p['sharding']['mean_bytes'] / 1e9:,.2f}"),
]
_SPEED = [
    ("examples/s", lambda p: f"{p['examples_per_s']:,.0f}"),
    ("MFU", lambda p: f"{p['mfu']:.1%}"),
    ("scaling ratio", lambda p: f"{p['scaling_ratio']:.3f}"),
]


def _rows(plans: list[dict[str, Any]], key: str, unit: float) -> list[list[str]]:
    return [[name.replace("_", " "), *(f"{unit * p[key][name]:,.2f}" for p in plans)] for name in plans[0][key]]


def _assumed(facts: dict[str, Any]) -> dict[str, Any]:
    """All assumptions with the values that were used, where the default is to ask the GPU or the run."""
    gpu, first = facts["gpu"], facts["plans"][0]
    used = {
        "local_batch": ", ".join(dict.fromkeys(str(plan["local_batch"]) for plan in facts["plans"])),
        "dp_shard": first["mesh"]["dp_shard"],
        "table_group": ", ".join(dict.fromkeys(str(plan["mesh"]["table_group"]) for plan in facts["plans"])),
        "peak_tflop_per_s": gpu["flop_per_s"][facts["model"]["precision"]] / 1e12,
        "memory_gb": gpu["memory_bytes"] / 1e9,
        "memory_gb_per_s": gpu["memory_bytes_per_s"] / 1e9,
        "gpus_per_node": gpu["per_node"],
        "intra_gb_per_s": gpu["intra_bytes_per_s"] / 1e9,
        "inter_gb_per_s": gpu["inter_bytes_per_s"] / 1e9,
    }
    assumed: dict[str, Any] = facts["assumptions"]
    return assumed | used | (facts["hypothetical_tables"] or {})
