"""`gemkit inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        help="what is inside a run folder: state, config, checkpoints, parameters",
        epilog="gemkit inspect runs/<name> --verify",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--verify", action="store_true", help="read the checkpoints whole and compare their sha256")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run, command="inspect")


def run(args: argparse.Namespace) -> int:
    """Prints what is in a run folder; 2 if a checkpoint is damaged."""
    import json

    from rich.console import Console

    from gemkit.runs.inspect import inspect_run, print_run

    facts = inspect_run(args.run_folder, args.verify)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print_run(facts, Console())
    return 2 if any(row["sound"] is False for row in facts["checkpoints"]) else 0
