"""`gemkit cost`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "cost",
        parents=[common],
        help="FLOPs, parameters and activation bytes of each part of a model, without training it",
        epilog="gemkit cost interaction=wukong size=large --depth 1",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `gemkit train`")
    parser.add_argument(
        "--depth", type=int, default=0, metavar="N", help="levels of modules to show below each component (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    parser.set_defaults(run=run, command="cost")


def run(args: argparse.Namespace) -> int:
    """Prints what a model costs."""
    if args.depth < 0:
        raise GemkitError(f"--depth is {args.depth}", where="command line", allowed="0 or more")

    import json

    from rich.console import Console

    from gemkit.config.compose import compose
    from gemkit.registry import load_registry

    registry = load_registry()
    config = compose(args.overrides, registry, args.config_dir)

    from gemkit.cost.count import model_cost
    from gemkit.cost.report import as_json, print_cost
    from gemkit.runs.files import write_text
    from gemkit.runs.progress import Progress
    from gemkit.session import open_dataset

    with Progress(console=Console(stderr=True)) as progress:
        dataset = open_dataset(config, registry, progress)
    facts = as_json(config, model_cost(config, registry, dataset), args.depth)
    print_cost(facts, Console())
    if args.json:
        write_text(args.json, json.dumps(facts, indent=2) + "\n")
    return 0
