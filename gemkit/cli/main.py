"""`gemkit`: parses the command line, runs a subcommand, and turns errors into a few lines and an exit code.

Exit codes: 0 done; 2 something the user can mend; 1 anything else; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gemkit import __version__
from gemkit.cli import components, config, data, doctor, evaluate, predict, train
from gemkit.errors import GemkitError, did_you_mean

COMMANDS = (train, evaluate, predict, config, components, data, doctor)

OK, DEFECT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `GemkitError`s, with the nearest match."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        invalid = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if invalid is None:
            raise GemkitError(message, where=self.prog, fix=f"{self.prog} --help")
        name, choices = invalid[1], re.findall(r"[\w-]+", invalid[2])
        raise GemkitError(
            f"unknown command '{name}'", where=self.prog, allowed=", ".join(choices), fix=did_you_mean(name, choices)
        )


def build_parser() -> Parser:
    """The parser of all subcommands."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    common.add_argument(
        "--config-dir",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="a folder of YAML files laid out like configs/, looked up before it; can be repeated",
    )
    parser = Parser(
        prog="gemkit",
        parents=[common],
        description="Train GEM-style ads foundation models, composed from registered components.",
        epilog="A run is a sentence: gemkit train data=movielens1m interaction=wukong sequence=pyramid",
    )
    parser.add_argument("--version", action="version", version=f"gemkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands, common)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses; overrides may stand before and after options.

    Raises:
        GemkitError: The command line is not understood.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    strange = [text for text in rest if text.startswith("-") or not hasattr(args, "overrides")]
    if strange:
        options = ["--traceback", "--config-dir", "--resume", "--input", "--output", "--json", "--help", "--version"]
        parser_name = f"gemkit {args.command}"
        fix = did_you_mean(strange[0], options) or f"{parser_name} --help"
        raise GemkitError(f"{parser_name} does not take '{strange[0]}'", where="command line", fix=fix)
    if rest:
        args.overrides += rest
    args.config_dir = getattr(args, "config_dir", [])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    show = "--traceback" in argv
    try:
        args = parse(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this, Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DEFECT
    except GemkitError as error:
        return _report(error, str(error), USER_ERROR, show)
    except OSError as error:
        if error.filename is None:
            return _report(error, f"{type(error).__name__}: {error}", DEFECT, show)
        return _report(error, f"{error.strerror or error}\n  where:   {error.filename}", USER_ERROR, show)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        text = (
            f"{type(error).__name__}: {first}\n"
            f"  this is a defect of {_culprit(error)}: run again with --traceback to see where"
        )
        return _report(error, text, DEFECT, show)


def _report(error: Exception, text: str, code: int, show: bool) -> int:
    if show:
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr)
    return code


def _culprit(error: Exception) -> str:
    """The plugin in whose code an exception was raised, as far as the traceback tells, else gemkit."""
    registry = sys.modules.get("gemkit.registry")
    if registry is None or not registry.load_registry.cache_info().currsize:
        return "gemkit"
    owners = {module: name for name, module in registry.load_registry().modules.items()}
    frames = traceback.walk_tb(error.__traceback__)
    packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
    # The deepest one: a plugin that calls gemkit wrongly is more likely than the reverse.
    return next((f"plugin {owners[package]}" for package in reversed(packages) if package in owners), "gemkit")


if __name__ == "__main__":
    sys.exit(main())
