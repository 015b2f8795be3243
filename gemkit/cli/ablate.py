"""`gemkit ablate`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.config.fields import shown
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    from gemkit.config.study import StudyConfig
    from gemkit.registry import Registry

DONE, FAILED = 0, 1
STUDIES = Path("studies")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "ablate",
        parents=[common],
        help="run variants of a base run with several seeds, and report what the differences are worth",
        epilog="gemkit ablate train.epochs=2 --toggle interaction=wukong,dcnv2 --toggle cross.flow=sole,int --seeds 5",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[STUDY] key=value",
        help="a study of configs/ablation/, and words of the base run, as for `gemkit train`",
    )
    parser.add_argument("--toggle", action="append", metavar="KEY=A,B", help="values to try; can be repeated")
    parser.add_argument("--seeds", metavar="N", help="how many (1 to N), or a list: 3,7,11")
    parser.add_argument(
        "--grid", action=argparse.BooleanOptionalAction, help="all combinations of the toggles, not one at a time"
    )
    parser.add_argument(
        "--match", metavar="WHAT", help="params, flops or none: adjust widths so that variants cost what the base costs"
    )
    parser.add_argument("--match-with", metavar="KEY", help="the field to adjust, in place of each variant's own width")
    parser.add_argument("--task", help="the task that the verdicts are about")
    parser.add_argument("--metric", help="the metric that the verdicts are about")
    parser.add_argument("--resamples", metavar="N", help="bootstrap resamples of the test examples")
    parser.add_argument("--resample", metavar="WHAT", help="examples, or groups: all examples of a user together")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the study's folder; alone: go on with that study")
    parser.add_argument("--jobs", metavar="N", help="runs at once; default: a core each, or one if there is a GPU")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs that are left; run nothing")
    parser.add_argument("--report", action="store_true", help="report what has finished; run nothing")
    parser.set_defaults(run=run, command="ablate")


def run(args: argparse.Namespace) -> int:
    """Runs a study."""
    from gemkit.registry import load_registry
    from gemkit.studies.ablate import Study
    from gemkit.studies.folder import StudyFolder, study_of
    from gemkit.studies.plan import make_plan

    if args.list and args.report:
        raise GemkitError("--list and --report exclude each other", where="gemkit ablate", fix="choose one")
    jobs = None if args.jobs is None else whole_number(args.jobs, "--jobs")
    registry = load_registry()
    name, _ = name_and_words(args.overrides)
    folder = StudyFolder(args.out or STUDIES / (name or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if args.out and not (args.overrides or args.toggle):
        old = folder.definition()
        if old is None:
            raise GemkitError(f"{args.out} holds no study to go on with", where="--out", fix="name one, or what to run")
        config, config_dirs = with_options(study_of(old), args), [Path(path) for path in old["config_dirs"]]
        command = old["command"]
    else:
        config, config_dirs, command = study_config(args, registry), args.config_dir, _command(args)
    study = Study(make_plan(config, registry, config_dirs), registry, folder, jobs, command)
    if args.list:
        for line in study.commands():
            print(line)
        return DONE
    failed = study.report() if args.report else study.execute()
    return FAILED if failed else DONE


def study_config(args: argparse.Namespace, registry: Registry) -> StudyConfig:
    """The study that the command line means: that of a name, if it gives one, with its own words and options.

    Raises:
        GemkitError: There is no such study, or an option is refused.
    """
    from gemkit.config.folders import config_folders
    from gemkit.config.study import StudyConfig, read_study

    name, words = name_and_words(args.overrides)
    config = read_study(name, config_folders(registry, args.config_dir)) if name else StudyConfig()
    toggles = (*config.toggles, *(args.toggle or ()))
    return with_options(dataclasses.replace(config, base=(*config.base, *words), toggles=toggles), args)


def whole_number(text: str, where: str) -> int:
    """
    Raises:
        GemkitError: `text` is no whole number above 0.
    """
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0):
        raise GemkitError(f"{where} {shown(text)} is no whole number", where=where, allowed=">= 1")
    return int(text)


def name_and_words(overrides: list[str]) -> tuple[str | None, list[str]]:
    """The study's name, if the first word is one, and the words of the base run."""
    if overrides and re.fullmatch(r"[\w.-]+", overrides[0]):
        return overrides[0], overrides[1:]
    return None, overrides


def with_options(config: StudyConfig, args: argparse.Namespace) -> StudyConfig:
    """A study with what the options say.

    Raises:
        GemkitError: An option is refused; it is named.
    """
    given: dict[str, Any] = {}
    for key in ("grid", "match_with", "task", "metric", "resample"):
        if (value := getattr(args, key)) is not None:
            given[key] = value
    if args.match is not None:
        given["match"] = None if args.match == "none" else args.match
    if args.seeds is not None:
        given["seeds"] = seeds_of(args.seeds)
    if args.resamples is not None:
        given["resamples"] = whole_number(args.resamples, "--resamples")
    try:
        return dataclasses.replace(config, **given)
    except GemkitError as error:
        option = "--" + (error.where or "").replace("_", "-")
        raise GemkitError(error.what, where=option, allowed=error.allowed, fix=error.fix) from error


def seeds_of(text: str) -> int | tuple[int, ...]:
    """``5`` is how many; ``3,7`` and ``3,`` are the seeds themselves."""
    if "," not in text:
        return whole_number(text, "--seeds")
    parts = text.removesuffix(",").split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 10 for part in parts):
        raise GemkitError(f"cannot read --seeds {shown(text)}", where="--seeds", allowed="5, or 3,7,11")
    return tuple(int(part) for part in parts)


def _command(args: argparse.Namespace) -> str:
    """The command line again, for the report."""
    words = ["gemkit", "ablate", *args.overrides]
    words += [word for folder in args.config_dir for word in ("--config-dir", str(folder))]
    words += [word for toggle in args.toggle or () for word in ("--toggle", toggle)]
    if args.grid is not None:
        words.append("--grid" if args.grid else "--no-grid")
    for key in ("seeds", "match", "match_with", "task", "metric", "resamples", "resample", "out"):
        if (value := getattr(args, key)) is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)
