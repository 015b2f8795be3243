"""A run's cost as a table for people and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from gemkit.config.run import RunConfig
from gemkit.cost.count import RunCost
from gemkit.cost.recompute import recomputed
from gemkit.runs.tables import print_table
from gemkit.runs.wording import sentence


def as_json(run: RunConfig, cost: RunCost, depth: int = 0) -> dict[str, Any]:
    """What `print_cost` prints, exactly: FLOPs, bytes and lookups are those of one example."""
    size, total = cost.num_examples, cost.total
    parts = cost.components(depth) | {"all": total}
    return {
        "run": sentence(run),
        "batch": {
            "examples": size,
            "tokens": cost.num_tokens,
            "histories": cost.num_histories,
            "events": cost.num_events,
        },
        "params": cost.params,
        "dense_params": cost.dense_params,
        "flops_per_example": cost.flops_per_example,
        "components": {
            name: {
                "params": part.params,
                "forward_flops": part.forward_flops / size,
                "backward_flops": part.backward_flops / size,
                "activation_bytes": part.activation_bytes / size,
                "share": part.flops / total.flops if total.flops else None,
            }
            for name, part in parts.items()
        },
        "tables": {
            name: {
                "num_embeddings": table.num_embeddings,
                "params": table.params,
                "lookups": table.lookups / size,
                "read_bytes": table.read_bytes / size,
                "written_bytes": table.written_bytes / size,
            }
            for name, table in cost.tables.items()
        },
        "notes": list(_notes(run, cost)),
    }


def print_cost(facts: dict[str, Any], console: Console) -> None:
    """`as_json`'s facts for people."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    batch = facts["batch"]
    line(facts["run"])
    examples = f"{batch['examples']:,} examples of {batch['tokens']} tokens"
    line(f"counted on a training batch: {examples}{_histories(batch)}\n")
    header = ["", "parameters", "forward MFLOP", "backward MFLOP", "activations kB", "share of FLOPs"]
    rows = [
        [
            name,
            f"{part['params']:,}",
            f"{part['forward_flops'] / 1e6:,.3f}",
            f"{part['backward_flops'] / 1e6:,.3f}",
            f"{part['activation_bytes'] / 1e3:,.1f}",
            "-" if part["share"] is None else f"{part['share']:.1%}",
        ]
        for name, part in facts["components"].items()
    ]
    print_table("a training step, per example", header, rows, console)
    header = ["", "rows", "parameters", "lookups", "bytes read", "bytes written"]
    keys = ("lookups", "read_bytes", "written_bytes")
    rows = [
        [name, f"{t['num_embeddings']:,}", f"{t['params']:,}", *(f"{t[key]:,.1f}" for key in keys)]
        for name, t in facts["tables"].items()
    ]
    print_table("embedding tables, per example", header, rows, console)
    line(f"{facts['params']:,} parameters; {facts['flops_per_example'] / 1e6:,.3f} MFLOP per example")
    for note in facts["notes"]:
        line(note)


def _histories(batch: dict[str, int]) -> str:
    if not batch["histories"]:
        return ""
    per_example, per_history = (batch["events"] / batch[of] for of in ("examples", "histories"))
    return (
        f"; {batch['histories']:,} histories, {batch['events']:,} events "
        f"({per_example:,.1f} per example, {per_history:,.1f} per history)"
    )


def _notes(run: RunConfig, cost: RunCost) -> Iterator[str]:
    """What the numbers leave out."""
    if run.transfer is not None:
        yield f"note: transfer={run.transfer.name} is not counted: these are the costs of the student alone"
    if run.train.activation_budget < 1:
        yield recomputed(run, cost).note(run.train.activation_budget)
    if run.train.checkpoint_activations:
        yield "note: counted as without train.checkpoint_activations, which trades activations for FLOPs"
    if cost.unknown:
        yield f"note: nobody has said how to count {', '.join(cost.unknown)}: counted as nothing"
    if cost.ran:
        yield "note: the step was computed, because a component looks at what it has computed"
