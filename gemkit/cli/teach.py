"""`gemkit teach`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "teach",
        parents=[common],
        help="what a run says about examples, kept in a log that students are trained from",
        epilog="gemkit teach runs/gem --log teachers/gem --codes 32 && gemkit train transfer=distill "
        "transfer.log=teachers/gem",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the teacher's run folder")
    parser.add_argument(
        "--log", type=Path, required=True, metavar="LOG", help="the log's folder; one that is there grows"
    )
    parser.add_argument(
        "--days",
        metavar="A,B",
        help="only examples from day A until day B, counted from the data set's first "
        "(default: all that are newer than what the teacher was trained on)",
    )
    parser.add_argument(
        "--surfaces", default="", metavar="S,S", help="only examples on these surfaces (default: the teacher's)"
    )
    parser.add_argument("--codes", type=int, metavar="K", help="also keep codes of K numbers of what the head reads")
    parser.add_argument("--bits", type=int, default=8, metavar="N", help="of each number: 4, 8 or 32 (default: 8)")
    parser.add_argument(
        "--codes-of",
        default="example",
        choices=("example", "user"),
        help="keep as much as possible of each example, or what examples of one user share (default: example)",
    )
    parser.add_argument(
        "--anchor", type=Path, metavar="LOG", help="keep the code space of this log, of an earlier teacher"
    )
    parser.add_argument(
        "--seen", action="store_true", help="answer examples too whose labels the teacher may have been trained on"
    )
    parser.set_defaults(run=run, command="teach")


def run(args: argparse.Namespace) -> int:
    """Asks a teacher."""
    from gemkit.transfer.codes import BITS

    if args.codes is not None and not 1 <= args.codes <= 4096:
        raise GemkitError(f"--codes is {args.codes}", where="--codes", allowed="1 to 4096")
    if args.bits not in BITS:
        raise GemkitError(f"--bits is {args.bits}", where="--bits", allowed=", ".join(map(str, BITS)))
    if args.anchor is not None and args.codes is not None:
        raise GemkitError("--codes beside --anchor, whose codes have their own width", where="--codes", fix="name one")
    days = _days(args.days)
    from gemkit.registry import load_registry
    from gemkit.transfer.codes import Coding
    from gemkit.transfer.teach import Lesson, teach

    lesson = Lesson(
        days=days,
        surfaces=tuple(filter(None, args.surfaces.split(","))),
        seen=args.seen,
        coding=None if args.codes is None else Coding(args.codes, args.bits, args.codes_of),
        anchor=args.anchor,
    )
    taught = teach(args.run_folder, args.log, lesson, load_registry())
    before = taught.asked - taught.answered
    print(f"{taught.answered:,} answers in {args.log}" + (f", {before:,} were there" if before else ""))
    return 0


def _days(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, last = (float(word) for word in text.split(","))
        if not 0 <= first < last:
            raise ValueError
    except ValueError:
        raise GemkitError(
            f"--days is {text!r}", where="--days", allowed="two numbers, the first smaller: --days 7,14"
        ) from None
    return first, last
