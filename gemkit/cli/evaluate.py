"""`gemkit evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="test metrics of a run's best checkpoint",
        epilog="gemkit evaluate runs/<name>",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.set_defaults(run=run, command="evaluate")


def run(args: argparse.Namespace) -> int:
    """Evaluates."""
    from gemkit.evaluate import evaluate
    from gemkit.registry import load_registry

    evaluate(args.run_folder, load_registry())
    return 0
