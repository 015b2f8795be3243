"""`gemkit train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a model; ends with its test metrics and a run folder",
        epilog="gemkit train interaction=wukong sequence=none train.epochs=2 optimizer.lr=3e-3",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="choices (group=name) and values (section.key=value)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run folder, with its own config; overrides say where and how fast, not what is trained",
    )
    parser.set_defaults(run=run, command="train")


def run(args: argparse.Namespace) -> int:
    """Trains."""
    from gemkit.config.compose import compose
    from gemkit.config.resume import resumed_config
    from gemkit.registry import load_registry

    registry = load_registry()
    if args.resume is None:
        config = compose(args.overrides, registry, args.config_dir)
    else:
        config = resumed_config(args.resume / "config.yaml", args.overrides, registry, args.config_dir)

    from gemkit.runs.startup import process_started_s
    from gemkit.train import train

    folders = [word for folder in args.config_dir for word in ("--config-dir", str(folder))]
    command = ["gemkit", "train", *folders, *args.overrides]
    train(config, registry, args.resume, command=command, started_s=process_started_s())
    return 0
