"""`gemkit cycle`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "cycle",
        parents=[common],
        help="day by day: students serve, labels arrive, teacher and students go on",
        epilog="gemkit cycle cycle.yaml --seeds 1",
    )
    parser.add_argument("cycle", type=Path, metavar="CYCLE", help="a YAML file: a teacher, students, days")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="words of every run, after the file's")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 1 to N, in place of the file's")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where runs, logs and report are (default: cycles/<file name>)"
    )
    parser.add_argument("--check", action="store_true", help="compose every model; train nothing")
    parser.set_defaults(run=run, command="cycle")


def run(args: argparse.Namespace) -> int:
    """Goes through the days."""
    from gemkit.registry import load_registry
    from gemkit.transfer.cycle.config import CycleConfig
    from gemkit.transfer.cycle.run import CycleRunner
    from gemkit.transfer.reading import read
    from gemkit.transfer.units import Units

    cycle = read(args.cycle, CycleConfig, "CYCLE")
    if args.seeds is not None:
        cycle = dataclasses.replace(cycle, seeds=args.seeds)
    out = args.out or Path("cycles") / args.cycle.stem
    runner = CycleRunner(cycle, out, Units(load_registry(), args.overrides, args.config_dir))
    if args.check:
        runner.check()
        last = cycle.first_day + cycle.days - 1
        print(f"{', '.join(cycle.students)} serve days {cycle.first_day} to {last}")
        return 0
    from gemkit.transfer.cycle.report import markdown, report, write_report

    facts = report(runner.run(), cycle.task)
    write_report(facts, out)
    print(markdown(facts))
    print(f"report in {out}")
    return 0
