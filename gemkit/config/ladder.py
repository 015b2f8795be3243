"""What a ladder is: the options of `gemkit scale` as a YAML file in `configs/scale/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gemkit.config.fields import Config, from_mapping, option, shown
from gemkit.config.files import find_files, read_config_file
from gemkit.config.study import StudyConfig
from gemkit.errors import GemkitError, did_you_mean

GROUP = "scale"

COSTS = ("flops_per_example", "training_flops")
FROM_DATA = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderConfig(Config):
    """Architectures, sizes, and how often each is trained."""

    base: tuple[str, ...] = option((), "Words of every run, as for `gemkit train`.")
    archs: dict[str, tuple[str, ...]] = option({}, "Name -> words of each architecture; none: the base alone.")
    rungs: tuple[tuple[str, ...], ...] = option(
        (), "Words of each size, from the smallest: widths, depths, and the data that grow along (train.max_steps)."
    )
    seeds: int | tuple[int, ...] = option(3, "How many (then 1, 2, ...), or a list of them.", ge=0, lt=2**32)
    task: str | None = option(None, "Task whose metric is fitted; null: the first of the data set.")
    metric: str = option("ne", "What is fitted.", choices=("ne", "logloss"))
    cost: str = option("flops_per_example", "What it is fitted against.", choices=COSTS)
    floor: float | str | None = option(
        None,
        "What no size undercuts: a number; `data`: the metric of the true probabilities, where the data set knows "
        "them; null: fitted.",
        ge=0,
    )
    note: str = option("", "A sentence for the reader of the report.")

    def check(self) -> None:
        if isinstance(self.floor, str) and self.floor != FROM_DATA:
            raise GemkitError(
                f"floor = {shown(self.floor)} is no floor", where="floor", allowed=f"a number, {FROM_DATA}, or null"
            )
        self.study({})  # checks the seeds

    def study(self, variants: dict[str, tuple[str, ...]]) -> StudyConfig:
        """The study that the ladder is for the executor: its variants are all architectures at all sizes."""
        return StudyConfig(
            base=self.base,
            variants=variants,
            seeds=self.seeds,
            task=self.task,
            metric=self.metric,
            note=self.note,
        )


def ladders_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of each ladder."""
    return {name: path for (_, name), path in find_files(folders, [GROUP]).items()}


def read_ladder(name: str, folders: Sequence[Path]) -> LadderConfig:
    """The ladder of that name.

    Raises:
        GemkitError: There is none, or it is not what it should be; the file and the field are named.
    """
    found = ladders_in(folders)
    if name not in found:
        raise GemkitError(
            f"unknown ladder {shown(name)}",
            where="LADDER",
            allowed=", ".join(found) or "a file in configs/scale/",
            fix=did_you_mean(name, found),
        )
    path = found[name]
    file = read_config_file(path)
    if file.package is not None:
        raise GemkitError("a ladder has no header", where=str(path), fix=f"remove the line # @package {file.package}")
    try:
        ladder: LadderConfig = from_mapping(LadderConfig, file.values)
    except GemkitError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
    return ladder
