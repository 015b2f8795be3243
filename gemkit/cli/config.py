"""`gemkit config`."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "config",
        parents=[common],
        help="print the config that `gemkit train` would run with, as YAML",
        epilog="gemkit config experiment=movielens1m_autoint size=medium",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `gemkit train`")
    parser.set_defaults(run=run, command="config")


def run(args: argparse.Namespace) -> int:
    """Prints the composed config."""
    from gemkit.config.compose import compose, to_yaml
    from gemkit.registry import load_registry

    print(to_yaml(compose(args.overrides, load_registry(), args.config_dir)), end="")
    return 0
