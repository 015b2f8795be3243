"""What a study is: the options of `gemkit ablate` as a YAML file in `configs/ablation/`.

The same folder holds changes to one run (``ablation=no_cross``), which begin with ``# @package _global_``. A study
has no such header, and is several runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gemkit.config.fields import Config, from_mapping, option, shown
from gemkit.config.files import ConfigFile, find_files, read_config_file
from gemkit.errors import GemkitError, did_you_mean
from gemkit.metrics.names import HIGHER_IS_BETTER

GROUP = "ablation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig(Config):
    """A base run, what is changed about it, and how often each is run."""

    base: tuple[str, ...] = option((), "Words of the base run, as for `gemkit train`.")
    toggles: tuple[str, ...] = option((), "`key=value,value,...`: choices and values to try in place of the base's.")
    variants: dict[str, tuple[str, ...]] = option({}, "Name -> words, for changes that take several words.")
    seeds: int | tuple[int, ...] = option(3, "How many (then 1, 2, ...), or a list of them.", ge=0, lt=2**32)
    grid: bool = option(False, "All combinations of the toggles; false: one change at a time.")
    match: str | None = option(
        None,
        "Adjust each variant's width until it has the base's dense parameters, or FLOPs per example; null: do not.",
        choices=("params", "flops"),
    )
    match_with: str | None = option(None, "The field to adjust; null: the width that the changed component declares.")
    task: str | None = option(None, "Task that the verdicts are about; null: the first of the data set.")
    metric: str = option("ne", "Metric that the verdicts are about.", choices=tuple(HIGHER_IS_BETTER))
    resamples: int = option(1000, "Bootstrap resamples of the test examples.", ge=100, le=1_000_000)
    resample: str = option(
        "examples", "What is drawn: single examples, or all of a group (a user).", choices=("examples", "groups")
    )
    note: str = option("", "A sentence for the reader of the report.")

    def check(self) -> None:
        seeds = self.seed_list
        if not seeds or len(set(seeds)) < len(seeds):
            what = "names a seed twice" if seeds else "names no seed"
            raise GemkitError(
                f"seeds = {shown(self.seeds)} {what}", where="seeds", allowed="how many, or a list of different ones"
            )
        if len(seeds) > 1000:
            raise GemkitError(f"seeds = {shown(self.seeds)} are too many", where="seeds", allowed="at most 1,000")

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        if isinstance(self.seeds, int):
            return tuple(range(1, min(self.seeds, 1001) + 1))
        return self.seeds


KEYS = tuple(f.name for f in dataclasses.fields(StudyConfig))


def is_study(file: ConfigFile) -> bool:
    """Whether a file of `configs/ablation/` is a study, not a change to one run."""
    return file.package is None and not file.values.keys().isdisjoint(KEYS)


def studies_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of each study; one that cannot be read is left for the error that says why."""
    found = {}
    for (_, name), path in find_files(folders, [GROUP]).items():
        try:
            study = is_study(read_config_file(path))
        except GemkitError:
            continue
        if study:
            found[name] = path
    return found


def read_study(name: str, folders: Sequence[Path]) -> StudyConfig:
    """The study of that name.

    Raises:
        GemkitError: There is none, or it is not what it should be; the file and the field are named.
    """
    path = find_files(folders, [GROUP]).get((GROUP, name))
    if path is None:
        names = list(studies_in(folders))
        raise GemkitError(
            f"unknown study {shown(name)}", where="STUDY", allowed=", ".join(names), fix=did_you_mean(name, names)
        )
    file = read_config_file(path)
    if file.package is not None:
        raise GemkitError(
            f"{name} is a change to one run, not a study",
            where=str(path),
            allowed=", ".join(studies_in(folders)),
            fix=f"gemkit train ablation={name}, or gemkit ablate --toggle ablation={name}",
        )
    try:
        study: StudyConfig = from_mapping(StudyConfig, file.values)
    except GemkitError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
    return study


def study_as_choice(name: str) -> GemkitError:
    """The error for a study that a single run names."""
    return GemkitError(f"ablation={name} is a study of several runs", where=GROUP, fix=f"gemkit ablate {name}")
