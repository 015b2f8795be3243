"""`gemkit data fetch | build | inspect`."""

from __future__ import annotations

import argparse
from typing import Any

from gemkit.errors import GemkitError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand and its actions."""
    parser = commands.add_parser("data", parents=[common], help="fetch, build and inspect data sets")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    for name, action, text in (
        ("fetch", fetch, "fetch the source files of a data set"),
        ("build", build, "build the dataset folder, fetching first what is missing"),
        ("inspect", inspect, "counts, label rates, histories, time span and splits of a built data set"),
    ):
        sub = actions.add_parser(name, parents=[common], help=text, epilog=f"gemkit data {name} movielens1m")
        sub.add_argument("name", metavar="NAME", help="a data component, or a YAML file of the group data")
        sub.add_argument("overrides", nargs="*", metavar="data.key=value", help="its options, e.g. data.split=autoint")
        sub.set_defaults(run=action, command=f"data {name}")
        if name == "build":
            sub.add_argument("--again", action="store_true", help="build even what is there and current")
        if name == "inspect":
            sub.add_argument("--json", action="store_true", help="print plain data")


def fetch(args: argparse.Namespace) -> int:
    """Fetches source files."""
    from gemkit.data.prepare import fetch_files
    from gemkit.runs.progress import Progress

    spec, config = _chosen(args)
    with Progress() as progress, progress.callback() as report:
        folder = fetch_files(spec, config, report, progress.print)
    print(f"source files in {folder}")
    return 0


def build(args: argparse.Namespace) -> int:
    """Builds a dataset folder."""
    from gemkit.data.prepare import build_dataset, fetch_files, is_current
    from gemkit.runs.progress import Progress

    spec, config = _chosen(args)
    with Progress() as progress:
        if args.again or not is_current(config):
            with progress.callback() as report:
                fetch_files(spec, config, report, progress.print)
        with progress.callback("steps") as report:
            folder = build_dataset(spec, config, report, again=args.again)
    print(f"data set in {folder}")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Prints what is in a data set."""
    import json

    from rich.console import Console

    from gemkit.data.dataset import Dataset
    from gemkit.data.inspect import inspect, render
    from gemkit.data.prepare import dataset_folder, is_current

    _, config = _chosen(args)
    folder = dataset_folder(config)
    if not is_current(config):
        words = " ".join([args.name, *args.overrides])
        raise GemkitError(
            f"the data set {args.name} is not built with these options",
            where=str(folder),
            fix=f"gemkit data build {words}",
        )
    report = inspect(Dataset.open(folder))
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        Console().print(render(report))
    return 0


def _chosen(args: argparse.Namespace) -> tuple[Any, Any]:
    """The data component's spec and its config."""
    from gemkit.config.compose import compose_section
    from gemkit.registry import load_registry

    registry = load_registry()
    config = compose_section("data", [f"data={args.name}", *args.overrides], registry, args.config_dir)
    return registry.get("data", config.name), config
