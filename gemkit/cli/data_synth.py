"""`gemkit data synth`: builds a synthetic world and says how good a model can get on it."""

from __future__ import annotations

import argparse
from typing import Any

WORLD = "adsworld"


def add(actions: Any, common: argparse.ArgumentParser) -> None:
    """Adds the action."""
    sub = actions.add_parser(
        "synth",
        parents=[common],
        help="make a synthetic ads world whose true probabilities are known",
        epilog="gemkit data synth data.num_users=1000 data.order=0",
    )
    sub.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help=f"its options; gemkit components data/{WORLD} shows them"
    )
    sub.add_argument("--again", action="store_true", help="build even what is there and current")
    sub.set_defaults(run=synth, command="data synth", name=WORLD)


def synth(args: argparse.Namespace) -> int:
    """Builds the world and prints the floor."""
    from rich.console import Console

    from gemkit.config.compose import compose_section
    from gemkit.data.dataset import Dataset
    from gemkit.data.inspect import inspect, render_floors
    from gemkit.data.prepare import build_dataset, dataset_folder, fetch_files, is_current
    from gemkit.registry import load_registry
    from gemkit.runs.progress import Progress

    registry = load_registry()
    config = compose_section("data", [f"data={args.name}", *args.overrides], registry, args.config_dir)
    spec = registry.get("data", config.name)
    if args.again or not is_current(config):
        with Progress() as progress:
            with progress.callback() as report:
                fetch_files(spec, config, report, progress.print)
            with progress.callback("steps") as report:
                build_dataset(spec, config, report, again=args.again)
    report_ = inspect(Dataset.open(dataset_folder(config)))
    console = Console()
    console.print(render_floors(report_["splits"]))
    console.print(f"data set in {report_['folder']}", markup=False, highlight=False, soft_wrap=True)
    return 0
