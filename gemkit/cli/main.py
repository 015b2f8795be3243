"""`gemkit`: parses the command line, runs a subcommand, and turns errors into a few lines and an exit code.

Exit codes: 0 done; 2 something the user can mend; 1 anything else; 130 stopped by Ctrl-C (143: by SIGTERM).
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gemkit import __version__
from gemkit.cli import (
    ablate,
    cache,
    components,
    config,
    cost,
    cycle,
    data,
    doctor,
    evaluate,
    inspect,
    plan,
    predict,
    scale,
    teach,
    train,
    transfer,
)
from gemkit.config.fields import check_text, clipped, shown
from gemkit.errors import GemkitError, did_you_mean
from gemkit.runs.stopping import Stopped

COMMANDS = (
    *(train, ablate, scale, evaluate, predict, teach, transfer, cycle),
    *(inspect, config, cost, plan, components, data, cache, doctor),
)

OK, DEFECT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

LATER_S = 3.0
"""By how much the first process on a machine goes ahead in saying what is wrong."""

_FIXES = {
    errno.ENOENT: "look for a typing error in the path",
    errno.EACCES: "name a place that you may read and write, or have its rights changed",
    errno.EPERM: "name a place that you may read and write, or have its rights changed",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "free some space, or name another place",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder, not a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What mends an error of the operating system."""


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
            f"unknown command {shown(name)}",
            where=self.prog,
            allowed=", ".join(choices),
            fix=did_you_mean(name, choices),
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
    _check_words(argv)
    parser = build_parser()
    if argv and argv[0].startswith("-"):  # an unknown one would make its value look like the command
        _check_options(parser, "gemkit", [argv[0]])
    args, rest = parser.parse_known_args(argv)
    _check_options(parser, f"gemkit {args.command}", rest, takes_words=hasattr(args, "overrides"))
    if rest:
        args.overrides += rest
    args.config_dir = getattr(args, "config_dir", [])
    return args


def _check_words(argv: Sequence[str]) -> None:
    """
    Raises:
        GemkitError: A word is empty, or is no text.
    """
    for number, word in enumerate(argv, 1):
        check_text(word, f"word {number}", longest=1_000_000)  # overrides and paths have limits of their own
        if not word or (word.startswith("--") and word.endswith("=")):
            raise GemkitError(
                f"word {number} of the command line, {word or 'an empty one'!r}, says nothing",
                where="gemkit " + clipped(" ".join(argv[: number - 1])),
                fix="is a variable of the shell empty?",
            )


def _check_options(parser: argparse.ArgumentParser, name: str, words: Sequence[str], takes_words: bool = True) -> None:
    """
    Args:
        name: The command so far, e.g. ``gemkit data build``.
        takes_words: Whether words that are no options are fine.

    Raises:
        GemkitError: The command does not take one of the words.
    """
    for step in name.split()[1:]:
        parser = next(a.choices[step] for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    options = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        option = word.partition("=")[0]
        if (word.startswith("-") and option not in options) or not (takes_words or word.startswith("-")):
            raise GemkitError(
                f"{name} does not take {shown(word)}",
                where="command line",
                allowed=", ".join(o for o in options if o.startswith("--")),
                fix=did_you_mean(option, options) or f"{name} --help",
            )


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
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this, Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DEFECT
    except GemkitError as error:
        return _report(error, str(error), USER_ERROR, show)
    except OSError as error:
        if error.filename is None:
            return _report(error, f"{type(error).__name__}: {error}", DEFECT, show)
        mended = GemkitError(
            error.strerror or str(error), where=shown(error.filename).strip("'"), fix=_FIXES.get(error.errno or 0)
        )
        return _report(error, str(mended), USER_ERROR, show)
    except Exception as error:
        if _is_lost_connection(error):
            text = GemkitError(
                "another process has ended, or has not answered within parallel.timeout_s; its output says why"
            )
            return _report(error, str(text), USER_ERROR, show, later_s=0.0)
        if _is_out_of_memory(error):
            text = GemkitError(
                f"there is not enough memory: {clipped(_first_line(error))}",
                fix="lower train.batch_size, train.eval_batch_size, size.dim or data.max_history",
            )
            return _report(error, str(text), USER_ERROR, show)
        defect = (
            f"{type(error).__name__}: {_first_line(error)}\n"
            f"  this is a defect of {_culprit(error)}: run again with --traceback to see where"
        )
        return _report(error, defect, DEFECT, show)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises MemoryError nowhere: on a GPU a class of its own, on a CPU a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "not enough memory" in str(error))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _is_lost_connection(error: Exception) -> bool:
    # gloo has no class of its own; its errors begin with the file that they come from.
    distributed = sys.modules.get("torch.distributed")
    kinds = getattr(distributed, "DistError", ()) if distributed else ()
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _report(error: Exception, text: str, code: int, show: bool, later_s: float = LATER_S) -> int:
    # Several processes often meet the same error. The first one says it; torchrun then ends the others.
    parent, deadline = os.getppid(), time.monotonic() + later_s
    while os.environ.get("LOCAL_RANK", "0") != "0" and time.monotonic() < deadline:
        if os.getppid() != parent:  # the first one has started this one, and is gone
            return code
        time.sleep(0.05)
    if show:
        traceback.print_exception(error)
    # What a file or a word holds must not steer the terminal.
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    print(f"error: {safe}", file=sys.stderr)
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
