"""`gemkit data check`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError


def add(actions: Any, common: argparse.ArgumentParser) -> None:
    """Adds the action to those of `gemkit data`."""
    parser = actions.add_parser(
        "check",
        parents=[common],
        help="verify a built data set: hashes, order, ids, pointers, leakage; exit code 2 if anything is wrong",
        epilog="gemkit data check datasets/movielens1m",
    )
    parser.add_argument("name", metavar="DIR|NAME", help="a dataset folder, or a data component as for `data build`")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="the component's options")
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="violations to print (default: 50)")
    parser.set_defaults(run=run, command="data check")


def run(args: argparse.Namespace) -> int:
    """Prints what is wrong with a data set; 2 if anything is."""
    import json

    from rich.console import Console

    from gemkit.data.validation.report import check
    from gemkit.runs.progress import Progress

    if args.limit < 0:
        raise GemkitError(f"--limit is {args.limit}", where="command line", allowed="0 or more")
    folder = _folder(args)
    with Progress(console=Console(stderr=True)) as progress, progress.callback("files") as report:
        result = check(folder, report)
    if args.json:
        print(json.dumps(result.as_json(args.limit), indent=2))
    else:
        for violation in result.violations[: args.limit]:
            print(_safe(f"{violation.place}: {violation.what}"))
            if violation.allowed:
                print(_safe(f"  allowed: {violation.allowed}"))
        if len(result.violations) > args.limit:
            print(f"... and {len(result.violations) - args.limit:,} more; --limit says how many are printed")
        print(result.summary)
    return 2 if result.violations else 0


def _folder(args: argparse.Namespace) -> Path:
    """The folder that the words of the command line mean."""
    path = Path(args.name)
    is_path = os.sep in args.name and path.suffix not in (".yaml", ".yml")
    if is_path or (path / "manifest.json").is_file():
        if args.overrides:
            raise GemkitError(
                f"{args.name} is a folder, which has no options",
                where=args.overrides[0],
                fix="name the folder alone, or the data component and its options",
            )
        return path
    from gemkit.cli.data import chosen
    from gemkit.data.prepare import dataset_folder

    _, config = chosen(args)
    return dataset_folder(config)


def _safe(text: str) -> str:
    # What a file holds must not steer the terminal.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
