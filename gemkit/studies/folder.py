"""A study's folder: what it is, and where its runs are.

studies/interactions/
    study.json               the definition: every variant's words and composed config
    runs/<variant>/seed<S>/  the run folder that `gemkit train` makes, what it printed, and its error if it failed
    report.{md,csv,json,html}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemkit.config.fields import shown, to_mapping
from gemkit.config.study import StudyConfig
from gemkit.errors import GemkitError
from gemkit.runs.files import write_text, writing_failed
from gemkit.runs.folder import CHECKPOINTS, CONFIG, METRICS
from gemkit.studies.plan import Plan, Variant

DEFINITION = "study.json"
FORMAT_VERSION = 1
STUDY_KEYS = {"command", "study", "config_dirs", "seeds", "variants"}
VARIANT_KEYS = {"words", "overrides", "matched", "note", "config"}
OUTPUT, ERROR = "output.txt", "error.txt"

NOT_COMPARED = ("seed", "runs")
"""Values of a run that are different in each."""


@dataclasses.dataclass(frozen=True)
class StudyFolder:
    """Where the runs of a study are."""

    path: Path

    def create(self) -> None:
        """
        Raises:
            GemkitError: The folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(self.path, error.errno or 0) from error

    def runs(self, variant: Variant, seed: int) -> Path:
        """The folder in which the run of one variant and seed is made."""
        return self.path / "runs" / variant.slug / f"seed{seed}"

    def started(self, variant: Variant, seed: int) -> Path | None:
        """Its run folder, if there is one: the finished one, else the newest."""
        folder = self.runs(variant, seed)
        found = [p.parent for p in sorted(folder.glob(f"*/{CONFIG}")) if (p.parent / CHECKPOINTS).is_dir()]
        found = [p for p in found if not p.name.startswith(".")]
        return next((p for p in found if (p / METRICS).exists()), found[-1] if found else None)

    def finished(self, variant: Variant, seed: int) -> Path | None:
        """Its run folder, if the run has finished."""
        run = self.started(variant, seed)
        return run if run and (run / METRICS).exists() else None

    def error(self, variant: Variant, seed: int) -> str | None:
        """Why the run failed the last time, if it has not finished since."""
        path = self.runs(variant, seed) / ERROR
        if not path.exists() or self.finished(variant, seed):
            return None
        return path.read_text(encoding="utf-8").rstrip()

    def definition(self) -> dict[str, Any] | None:
        """What study.json holds; None if there is none.

        Raises:
            GemkitError: It is damaged, or of another version.
        """
        path = self.path / DEFINITION
        if not path.exists():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = values["format_version"]
            complete = all(variant.keys() >= VARIANT_KEYS for variant in values["variants"].values())
            if version == FORMAT_VERSION and not (complete and values.keys() >= STUDY_KEYS):
                raise ValueError("something is missing in it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GemkitError(
                f"{DEFINITION} is damaged: {error}", where=str(path), fix="choose another folder: --out FOLDER"
            ) from error
        if version != FORMAT_VERSION:
            raise GemkitError(
                f"{DEFINITION} has format version {version}", where=str(path), allowed=f"version {FORMAT_VERSION}"
            )
        return values

    def matches(self, plan: Plan) -> dict[str, tuple[dict[str, Any], str]]:
        """Variant -> what was changed to match its cost when the study began, and the note about it."""
        old = self.definition()
        options = ("match", "match_with")
        if old is None or any(old["study"][key] != getattr(plan.config, key) for key in options):
            return {}
        return {name: (v["matched"], v["note"]) for name, v in old["variants"].items()}

    def check(self, plan: Plan) -> None:
        """
        Raises:
            GemkitError: The folder holds another study; the difference is named.
        """
        old = self.definition()
        if old is None:
            return
        own = describe(plan, "")
        different = list(differences(_runs_of(own), _runs_of(old)))
        if missing := sorted(set(old["seeds"]) - set(own["seeds"])):
            different.append(f"seeds: {', '.join(map(str, missing))} there, not here")
        if different:
            raise GemkitError(
                f"the folder holds another study: {len(different)} values differ, first {'; '.join(different[:3])}",
                where=str(self.path / DEFINITION),
                allowed="the same study, with the same seeds or more",
                fix="choose another folder: --out FOLDER",
            )

    def define(self, plan: Plan, command: str) -> None:
        """Writes study.json; one that is there must say the same of the runs.

        Raises:
            GemkitError: The folder holds another study, and the difference is named; or it cannot be written.
        """
        self.check(plan)
        write_text(self.path / DEFINITION, json.dumps(describe(plan, command), indent=2) + "\n")


def describe(plan: Plan, command: str) -> dict[str, Any]:
    """A plan as study.json holds it."""
    return {
        "format_version": FORMAT_VERSION,
        "command": command,
        "study": to_mapping(plan.config),
        "config_dirs": [str(folder) for folder in plan.config_dirs],
        "seeds": list(plan.seeds),
        "variants": {
            v.name: {
                "folder": v.slug,
                "words": list(v.words),
                "overrides": list(v.overrides),
                "matched": to_mapping(v.matched),
                "note": v.note,
                "config": comparable(v),
            }
            for v in plan.variants
        },
    }


def comparable(variant: Variant) -> dict[str, Any]:
    """A variant's composed config without what is different in each of its runs."""
    return {key: value for key, value in to_mapping(variant.run).items() if key not in NOT_COMPARED}


def study_of(definition: Mapping[str, Any]) -> StudyConfig:
    """The study of a definition, its toggles as the variants that they were."""
    values = dict(definition["study"])
    named = {name: v["words"] for name, v in list(definition["variants"].items())[1:]}
    return StudyConfig(**values | {"toggles": (), "grid": False, "variants": named, "seeds": definition["seeds"]})


def differences(here: Any, there: Any, path: str = "") -> Iterator[str]:
    """``a.b: 1 here, 2 there`` for each value in which two nested mappings differ.

    A field that only one of them has is of another version of gemkit, and no difference; a variant is.
    """
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{path}.{key}" if path else str(key)
            if key in here and key in there:
                yield from differences(here[key], there[key], inner)
            elif not path:
                yield f"{inner} is only {'here' if key in here else 'there'}"
    elif here != there:
        yield f"{path}: {shown(here)} here, {shown(there)} there"


def _runs_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a definition says about each variant's runs."""
    return {f"variant {name}": v["config"] for name, v in definition["variants"].items()}
