"""`gemkit scale`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.cli.ablate import DONE, FAILED, STUDIES, name_and_words, seeds_of, whole_number
from gemkit.component import KINDS
from gemkit.config.fields import shown
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    from gemkit.config.ladder import LadderConfig

FIT = "fit"
"""``--floor fit``: no floor is given."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "scale",
        parents=[common],
        help="train architectures at several sizes, fit the law that their quality follows, and compare their costs",
        epilog="gemkit scale adsworld_interactions --seeds 3, or: gemkit scale data=adsworld --arch interaction=wukong "
        '--arch interaction=dlrm --rung "size.dim=16 train.max_steps=100" --rung ...',
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[LADDER] key=value",
        help="a ladder of configs/scale/, and words of the base run, as for `gemkit train`",
    )
    parser.add_argument(
        "--arch", action="append", metavar="WORDS", help="words of an architecture, in quotes; can be repeated"
    )
    parser.add_argument(
        "--rung", action="append", metavar="WORDS", help="words of a size, its data among them; from the smallest"
    )
    parser.add_argument("--seeds", metavar="N", help="how many (1 to N), or a list: 3,7,11")
    parser.add_argument("--task", help="the task whose metric is fitted")
    parser.add_argument("--metric", help="ne or logloss")
    parser.add_argument("--cost", help="what the metric is fitted against: flops_per_example or training_flops")
    parser.add_argument(
        "--floor", metavar="E", help="what no size undercuts: a number, data (the true probabilities'), or fit"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the ladder's folder; alone: go on with that ladder")
    parser.add_argument("--jobs", metavar="N", help="runs at once; default: a core each, or one if there is a GPU")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs that are left; run nothing")
    parser.add_argument("--report", action="store_true", help="report what has finished; run nothing")
    parser.set_defaults(run=run, command="scale")


def run(args: argparse.Namespace) -> int:
    """Runs a ladder."""
    from gemkit.registry import load_registry
    from gemkit.studies.scaling.plan import LadderFolder, ladder_of, make_ladder
    from gemkit.studies.scaling.study import ScalingStudy

    if args.list and args.report:
        raise GemkitError("--list and --report exclude each other", where="gemkit scale", fix="choose one")
    jobs = None if args.jobs is None else whole_number(args.jobs, "--jobs")
    registry = load_registry()
    name, _ = name_and_words(args.overrides)
    path = args.out or STUDIES / (name or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if args.out and not (args.overrides or args.arch or args.rung):
        old = LadderFolder(path).definition()
        if old is None:
            raise GemkitError(f"{path} holds no ladder to go on with", where="--out", fix="name one, or what to run")
        config_dirs, command = [Path(folder) for folder in old["config_dirs"]], old["command"]
        config = with_options(ladder_of(old, path), args)
    else:
        config, config_dirs, command = ladder_config(args, registry), args.config_dir, _command(args)
    folder = LadderFolder(path, config)
    study = ScalingStudy(make_ladder(config, registry, config_dirs), registry, folder, jobs, command)
    if args.list:
        for line in study.commands():
            print(line)
        return DONE
    failed = study.report() if args.report else study.execute()
    return FAILED if failed else DONE


def ladder_config(args: argparse.Namespace, registry: Any) -> LadderConfig:
    """The ladder that the command line means: that of a name, if it gives one, with its own words and options.

    Raises:
        GemkitError: There is no such ladder, or an option is refused.
    """
    from gemkit.config.folders import config_folders
    from gemkit.config.ladder import LadderConfig, read_ladder

    name, words = name_and_words(args.overrides)
    config = read_ladder(name, config_folders(registry, args.config_dir)) if name else LadderConfig()
    archs = dict(config.archs)
    for text in args.arch or ():
        own = _words(text, "--arch")
        if (arch := _arch_name(own)) in archs:
            raise GemkitError(f"two architectures are called {arch}", where="--arch", fix="leave one out")
        archs[arch] = own
    rungs = (*config.rungs, *(_words(text, "--rung") for text in args.rung or ()))
    return with_options(dataclasses.replace(config, base=(*config.base, *words), archs=archs, rungs=rungs), args)


def with_options(config: LadderConfig, args: argparse.Namespace) -> LadderConfig:
    """A ladder with what the options say.

    Raises:
        GemkitError: An option is refused; it is named.
    """
    given: dict[str, Any] = {
        key: value for key in ("task", "metric", "cost") if (value := getattr(args, key)) is not None
    }
    if args.seeds is not None:
        given["seeds"] = seeds_of(args.seeds)
    if args.floor is not None:
        given["floor"] = None if args.floor == FIT else _number(args.floor)
    try:
        return dataclasses.replace(config, **given)
    except GemkitError as error:
        raise GemkitError(error.what, where=f"--{error.where}", allowed=error.allowed, fix=error.fix) from error


def _number(text: str) -> float | str:
    """A number, or the text itself."""
    try:
        return float(text)
    except ValueError:
        return text


def _words(text: str, where: str) -> tuple[str, ...]:
    """The words of a quoted list.

    Raises:
        GemkitError: A quote in it is not closed, or there is none.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise GemkitError(f"cannot read {where} {shown(text)}: {error}", where=where) from error
    if not words:
        raise GemkitError(f"{where} names no words", where=where, allowed='words as for `gemkit train`: "size.dim=16"')
    return words


def _arch_name(words: tuple[str, ...]) -> str:
    """``wukong`` for the one word ``interaction=wukong``; else the words themselves."""
    kind, _, choice = words[0].partition("=")
    return choice if len(words) == 1 and kind in KINDS and choice else " ".join(words)


def _command(args: argparse.Namespace) -> str:
    """The command line again, for the report."""
    words = ["gemkit", "scale", *args.overrides]
    words += [word for folder in args.config_dir for word in ("--config-dir", str(folder))]
    words += [word for key in ("arch", "rung") for text in getattr(args, key) or () for word in (f"--{key}", text)]
    for key in ("seeds", "task", "metric", "cost", "floor", "out"):
        if (value := getattr(args, key)) is not None:
            words += [f"--{key}", str(value)]
    return shlex.join(words)
