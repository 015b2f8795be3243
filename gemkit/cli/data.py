"""`gemkit data fetch | build | merge | append | compact | inspect`, and the actions of the files beside this one."""

from __future__ import annotations

import argparse
from typing import Any

from gemkit.cli import data_check, data_synth
from gemkit.errors import GemkitError

SPLITS = ("train", "valid", "test")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand and its actions."""
    parser = commands.add_parser("data", parents=[common], help="fetch, build and inspect data sets")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    for name, action, text in (
        ("fetch", fetch, "fetch the source files of a data set"),
        ("build", build, "build the dataset folder, fetching first what is missing"),
        ("merge", merge, "make a data set of partitions that several machines have built with build --partitions"),
        ("append", append, "add new days of logs to a data set, as a new segment; what is there is not built again"),
        ("compact", compact, "merge the segments of a data set into one"),
        ("inspect", inspect, "counts, label rates, histories, time span and splits of a built data set"),
    ):
        sub = actions.add_parser(name, parents=[common], help=text, epilog=f"gemkit data {name} movielens1m")
        sub.add_argument("name", metavar="NAME", help="a data component, or a YAML file of the group data")
        sub.add_argument("overrides", nargs="*", metavar="data.key=value", help="its options, e.g. data.split=autoint")
        sub.set_defaults(run=action, command=f"data {name}")
        if name == "build":
            sub.add_argument("--again", action="store_true", help="build even what is there and current")
            sub.add_argument("--num-partitions", type=int, metavar="P", help="divide users into P partitions")
            sub.add_argument(
                "--partitions", metavar="I/N", help="build only the partitions of machine I of N, for `data merge`"
            )
        if name in ("build", "append"):
            sub.add_argument("--memory", default="4GiB", metavar="SIZE", help="memory to stay within (default: 4GiB)")
        if name == "append":
            sub.add_argument("--split", choices=SPLITS, help="split of all new examples (default: by their time)")
            sub.add_argument(
                "--late",
                choices=("refuse", "drop"),
                default="refuse",
                help="what to do with rows older than the data set's newest (default: refuse)",
            )
        if name == "inspect":
            sub.add_argument("--json", action="store_true", help="print plain data")
    data_check.add(actions, common)
    data_synth.add(actions, common)


def fetch(args: argparse.Namespace) -> int:
    """Fetches source files."""
    from gemkit.data.prepare import fetch_files
    from gemkit.runs.progress import Progress

    spec, config = chosen(args)
    with Progress() as progress, progress.callback() as report:
        folder = fetch_files(spec, config, report, progress.print)
    print(f"source files in {folder}")
    return 0


def build(args: argparse.Namespace) -> int:
    """Builds a dataset folder."""
    from gemkit.data.engine import Limits, bytes_of
    from gemkit.data.prepare import build_dataset, fetch_files, is_current
    from gemkit.runs.progress import Progress

    limits, share = Limits(bytes_of(args.memory), args.num_partitions), _share(args.partitions)
    spec, config = chosen(args)
    with Progress() as progress:
        if args.again or not is_current(config):
            with progress.callback() as report:
                fetch_files(spec, config, report, progress.print)
        with progress.callback("steps") as report:
            folder = build_dataset(spec, config, report, again=args.again, limits=limits, share=share)
    if share:
        print(f"part {args.partitions} is in {folder}.building; when all are: gemkit data merge {_words(args)}")
    else:
        print(f"data set in {folder}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Makes a data set of partitions."""
    from gemkit.data.prepare import merge_dataset
    from gemkit.runs.progress import Progress

    spec, config = chosen(args)
    with Progress() as progress, progress.callback("steps") as report:
        folder = merge_dataset(spec, config, report)
    print(f"data set in {folder}")
    return 0


def append(args: argparse.Namespace) -> int:
    """Adds a segment."""
    from gemkit.data.engine import Limits, bytes_of
    from gemkit.data.prepare import append_dataset, dataset_folder, fetch_files
    from gemkit.runs.progress import Progress

    limits = Limits(bytes_of(args.memory))
    spec, config = chosen(args)
    with Progress() as progress:
        with progress.callback() as report:
            fetch_files(spec, config, report, progress.print)
        with progress.callback("steps") as report:
            late = append_dataset(spec, config, report, limits=limits, split=args.split, drop_late=args.late == "drop")
    for table, rows in late.items():
        print(f"{rows:,} {table} were left out: they are older than the newest of the data set")
    print(f"appended to {dataset_folder(config)}")
    return 0


def compact(args: argparse.Namespace) -> int:
    """Merges segments."""
    from gemkit.data.prepare import compact_dataset, dataset_folder
    from gemkit.runs.progress import Progress

    _, config = chosen(args)
    with Progress() as progress, progress.callback("partitions") as report:
        done = compact_dataset(config, report)
    print(f"{dataset_folder(config)} {'has one segment now' if done else 'has one segment already'}")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Prints what is in a data set."""
    import json

    from rich.console import Console

    from gemkit.data.dataset import Dataset
    from gemkit.data.inspect import inspect, render
    from gemkit.data.prepare import dataset_folder, is_current

    _, config = chosen(args)
    folder = dataset_folder(config)
    if not is_current(config):
        raise GemkitError(
            f"the data set {args.name} is not built with these options",
            where=str(folder),
            fix=f"gemkit data build {_words(args)}",
        )
    report = inspect(Dataset.open(folder))
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        Console().print(render(report))
    return 0


def _share(text: str | None) -> Any:
    from gemkit.data.build import Share

    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(text) < 20):
        raise GemkitError(f"{text!r} is no part", where="--partitions", allowed="0/n to (n-1)/n, e.g. 0/4")
    return Share(int(index), int(count))


def _words(args: argparse.Namespace) -> str:
    return " ".join([args.name, *args.overrides])


def chosen(args: argparse.Namespace) -> tuple[Any, Any]:
    """The data component's spec and its config."""
    from gemkit.config.compose import compose_section
    from gemkit.registry import load_registry

    registry = load_registry()
    config = compose_section("data", [f"data={args.name}", *args.overrides], registry, args.config_dir)
    return registry.get("data", config.name), config
