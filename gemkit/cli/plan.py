"""`gemkit plan`."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.config.fields import bounds_text, shown
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    from gemkit.config.run import RunConfig
    from gemkit.plan.assumptions import Assumptions
    from gemkit.plan.gpus import Gpu


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand: an option for each assumption and for hypothetical tables."""
    from gemkit.plan.assumptions import Assumptions, Hypothetical

    parser = commands.add_parser(
        "plan",
        parents=[common],
        help="memory, communication and speed of a run on a cluster that need not be there",
        epilog="gemkit plan --gpu h100-80g --world-size 256,1024,4096 experiment=wukong_row4 --local-batch 1024 "
        "--embedding-params 600e9 --embedding-tables 720",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `gemkit train`")
    parser.add_argument("--world-size", required=True, metavar="N[,N]", help="GPUs, one number or several")
    parser.add_argument("--gpu", required=True, metavar="NAME", help="e.g. h100-80g; cpu: processes of this machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to a file")
    for title, config in (("assumptions", Assumptions), ("tables that no data set has", Hypothetical)):
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(config):
            bounds = bounds_text(field)
            default = "" if field.default is None else f"; default {field.default}"
            group.add_argument(
                "--" + field.name.replace("_", "-"),
                metavar="X",
                help=f"{field.metadata['doc']} ({bounds}{default})".replace("%", "%%"),
            )
    parser.set_defaults(run=run, command="plan")


def run(args: argparse.Namespace) -> int:
    """Prints what to expect on each world size."""
    import json

    from rich.console import Console

    from gemkit.config.compose import compose
    from gemkit.plan.assumptions import Assumptions, Hypothetical
    from gemkit.plan.plan import make_plan, mesh_of, remembering
    from gemkit.plan.report import as_json, print_plans
    from gemkit.plan.source import workload_of
    from gemkit.plan.tables import even_rows
    from gemkit.registry import load_registry
    from gemkit.runs.files import write_text

    registry = load_registry()
    assumptions, tables = (_config(cls, args) for cls in (Assumptions, Hypothetical))
    sizes = _sizes(args.world_size)
    config = compose(args.overrides, registry, args.config_dir)
    assumptions = assumptions.for_run(config)
    gpu = _gpu(args.gpu, assumptions, config)
    for size in sizes:
        mesh_of(size, gpu, assumptions)  # before anything takes long
    batches = {size: _local_batch(size, assumptions, config) for size in sizes}
    works = {batch: workload_of(config, registry, tables, batch) for batch in set(batches.values())}
    planner = remembering(registry.table_planner() or even_rows)
    plans = [
        make_plan(
            works[batches[size]],
            gpu,
            size,
            assumptions,
            planner,
            local_batch=batches[size],
            checkpointed=config.train.checkpoint_activations,
        )
        for size in sizes
    ]
    facts = as_json(config, works[batches[sizes[0]]], gpu, assumptions, tables, plans)
    print_plans(facts, Console())
    if args.json:
        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return 0


def _config(cls: Any, args: argparse.Namespace) -> Any:
    """The dataclass made of its options."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        text = getattr(args, field.name)
        if text is None:
            continue
        kinds = {int, float, str} & {hints[field.name], *typing.get_args(hints[field.name])}
        kind, flag = kinds.pop(), "--" + field.name.replace("_", "-")
        try:
            values[field.name] = kind(text)
        except ValueError:
            what = {int: "a whole number", float: "a number"}[kind]
            raise GemkitError(f"{flag} is {shown(text)}", where=flag, allowed=what) from None
    return cls(**values)


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= 2**17 for word in words):
        raise GemkitError(
            f"--world-size is {shown(text)}", where="--world-size", allowed="whole numbers, 1 to 131072, with commas"
        )
    return sorted({int(word) for word in words})


def _local_batch(world_size: int, assumptions: Assumptions, run: RunConfig) -> int:
    ranks = world_size * run.train.accumulate
    if assumptions.local_batch is None and run.train.batch_size % ranks:
        raise GemkitError(
            f"train.batch_size = {run.train.batch_size} cannot be divided among {world_size} GPUs",
            where="train.batch_size",
            allowed=f"a multiple of {ranks}",
            fix="set it, or say how many examples each GPU has: --local-batch",
        )
    return assumptions.local_batch or run.train.batch_size // ranks


def _gpu(name: str, assumptions: Assumptions, run: RunConfig) -> Gpu:
    from gemkit.plan.gpus import CPU, find_gpu, this_cpu

    if name != CPU:
        return assumptions.on(find_gpu(name), run.train.precision)
    import torch

    from gemkit.config.memory import available_bytes
    from gemkit.cost.peak import matmul_peak

    peak = matmul_peak("cpu", torch.float32, torch.get_num_threads())
    return assumptions.on(this_cpu(peak, float(available_bytes() or 0)), run.train.precision)
