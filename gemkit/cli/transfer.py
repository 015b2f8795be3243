"""`gemkit transfer`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "transfer",
        parents=[common],
        help="train a graph of teachers and students, and report what each was worth",
        epilog="gemkit transfer graph.yaml --seeds 1",
    )
    parser.add_argument("graph", type=Path, metavar="GRAPH", help="a YAML file: nodes, and who teaches whom")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="words of every node, after the file's")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 1 to N, in place of the file's")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where runs, logs and report are (default: transfers/<file name>)"
    )
    parser.add_argument("--check", action="store_true", help="compose every node; train nothing")
    parser.set_defaults(run=run, command="transfer")


def run(args: argparse.Namespace) -> int:
    """Trains a graph."""
    from gemkit.registry import load_registry
    from gemkit.transfer.graph.config import GraphConfig, in_order
    from gemkit.transfer.graph.run import GraphRunner
    from gemkit.transfer.reading import read
    from gemkit.transfer.units import Units

    graph = read(args.graph, GraphConfig, "GRAPH")
    if args.seeds is not None:
        graph = dataclasses.replace(graph, seeds=args.seeds)
    out = args.out or Path("transfers") / args.graph.stem
    registry = load_registry()
    runner = GraphRunner(graph, out, Units(registry, args.overrides, args.config_dir))
    if args.check:
        runner.check()
        print(" -> ".join(in_order(graph)))
        return 0
    from gemkit.transfer.graph.report import markdown, report, write_report

    facts = report(graph, runner.run(), registry)
    write_report(facts, out)
    print(markdown(facts))
    print(f"report in {out}")
    return 0
