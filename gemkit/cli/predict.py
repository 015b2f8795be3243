"""`gemkit predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "predict", parents=[common], help="predictions of a run's best checkpoint for new examples"
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="examples: CSV or Parquet")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="predictions: CSV or Parquet")
    parser.set_defaults(run=run, command="predict")


def run(args: argparse.Namespace) -> int:
    """Predicts."""
    from gemkit.predict import predict
    from gemkit.registry import load_registry

    rows = predict(args.run_folder, args.input, args.output, load_registry())
    print(f"{rows:,} predictions in {args.output}")
    return 0
