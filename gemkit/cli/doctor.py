"""`gemkit doctor`."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "doctor", parents=[common], help="what is installed, what works here, and what mends the rest"
    )
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.set_defaults(run=run, command="doctor")


def run(args: argparse.Namespace) -> int:
    """Prints the report; 0 if everything works that a CPU training run needs, else 1."""
    from gemkit.doctor import examine, render_check, render_facts

    if args.json:
        import json

        report = examine()
        print(json.dumps(report, indent=2))
    else:
        report = examine(facts=lambda r: print(render_facts(r)), seen=lambda c: print(render_check(c), flush=True))
        print("\nready for training runs" if report["ok"] else "\nnot ready: mend what is marked with XX")
    return 0 if report["ok"] else 1
