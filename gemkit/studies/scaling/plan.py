"""What a ladder runs: each architecture at each size, composed and checked before the first run starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemkit.config.fields import from_mapping, shown, to_mapping
from gemkit.config.ladder import LadderConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.files import write_text
from gemkit.studies.folder import DEFINITION, StudyFolder, describe
from gemkit.studies.plan import Plan, Variant, make_base, make_variant

LEAST_RUNGS = 3
LADDER = "ladder"
"""Key of study.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """A ladder whose runs are known.

    Attributes:
        archs: Name -> words.
        points: Name of the architecture -> its variants, from the first rung to the last.
        plan: All of them for the executor, rung by rung.
    """

    config: LadderConfig
    archs: Mapping[str, tuple[str, ...]]
    points: Mapping[str, tuple[Variant, ...]]
    plan: Plan


def make_ladder(config: LadderConfig, registry: Registry, config_dirs: Iterable[Path] = ()) -> Ladder:
    """The runs that a ladder asks for.

    Raises:
        GemkitError: It has too few rungs; or an architecture does not compose at one, which is named; or two of them
            are the same run.
    """
    folders = tuple(config_dirs)
    if len(config.rungs) < LEAST_RUNGS:
        raise GemkitError(
            f"the ladder has too few rungs: {len(config.rungs)}",
            where="--rung",
            allowed=f"at least {LEAST_RUNGS}: the law has three parameters",
            fix='--rung "size.dim=16 train.max_steps=100" --rung "size.dim=32 train.max_steps=400" ...',
        )
    base = make_base(config.base, registry, folders)
    archs = dict(config.archs) or {base.run.interaction.name if base.run.interaction else "base": ()}
    for name in archs:
        if not name.strip() or not name.isprintable() or len(name) > 60:
            raise GemkitError(
                f"{shown(name)} is no name for an architecture", where="archs", allowed="1 to 60 characters on one line"
            )
    variants: list[Variant] = []
    for i, rung in enumerate(config.rungs, 1):
        for arch, words in archs.items():
            slugs = [v.slug for v in variants]
            variant = make_variant(f"{arch} rung {i}", (*words, *rung), base, registry, folders, slugs)
            if twin := next((v for v in variants if v.run == variant.run), None):
                raise GemkitError(
                    f"{variant.name} and {twin.name} are the same run",
                    where="gemkit scale",
                    allowed="architectures and rungs that differ",
                    fix="leave one out, or change its words",
                )
            variants.append(variant)
    points = {arch: tuple(variants[k :: len(archs)]) for k, arch in enumerate(archs)}
    study = config.study({v.name: v.words for v in variants})
    plan = Plan(config=study, variants=tuple(variants), seeds=study.seed_list, config_dirs=folders)
    return Ladder(config=config, archs=archs, points=points, plan=plan)


@dataclasses.dataclass(frozen=True)
class LadderFolder(StudyFolder):
    """A study's folder whose definition holds the ladder too.

    Attributes:
        ladder: None as long as it is only read.
    """

    ladder: LadderConfig | None = None

    def define(self, plan: Plan, command: str) -> None:
        """As for any study; the folder alone is enough to go on with the ladder afterwards."""
        self.check(plan)
        definition = describe(plan, command) | {LADDER: to_mapping(self.ladder)}
        write_text(self.path / DEFINITION, json.dumps(definition, indent=2) + "\n")


def ladder_of(definition: Mapping[str, Any], folder: Path) -> LadderConfig:
    """The ladder of a definition.

    Raises:
        GemkitError: It is that of another kind of study.
    """
    if LADDER not in definition:
        raise GemkitError(
            "the folder holds an ablation, no ladder",
            where=str(folder / DEFINITION),
            fix=f"gemkit ablate --out {folder}, or choose another folder",
        )
    values = dict(definition[LADDER]) | {"seeds": definition["seeds"]}
    ladder: LadderConfig = from_mapping(LadderConfig, values)
    return ladder
