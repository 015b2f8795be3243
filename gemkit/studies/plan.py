"""What a study runs: the base and its variants, each composed and checked before the first one starts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemkit.component import KINDS
from gemkit.config.compose import compose, compose_section, expand_toggle, section_of
from gemkit.config.fields import shown
from gemkit.config.run import RunConfig
from gemkit.config.study import StudyConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry

BASE = "base"

OWN = {"seed": "--seeds", "runs": "--out"}
"""Keys of a run that the study sets itself, and what sets them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of the base run, or the base itself.

    Attributes:
        slug: Its folder's name.
        words: What it adds to the base's words.
        overrides: All words of its run, but seed, folder and threads.
        run: What they compose to.
        matched: Fields that were changed so that it costs what the base costs -> their values.
        note: What a reader must know of that.
    """

    name: str
    slug: str
    words: tuple[str, ...]
    overrides: tuple[str, ...]
    run: RunConfig
    matched: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a study: each of `variants`, the base first, with each of `seeds`."""

    config: StudyConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    config_dirs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> Variant:
        return self.variants[0]


def make_plan(config: StudyConfig, registry: Registry, config_dirs: Iterable[Path] = ()) -> Plan:
    """The runs that a study asks for.

    Raises:
        GemkitError: The base or a variant does not compose, which is named; or there is nothing to compare.
    """
    folders = tuple(config_dirs)
    first = make_base(config.base, registry, folders)
    variants, notes = [first], []
    for name, words in _named_words(config, registry, folders):
        variant = make_variant(name, words, first, registry, folders, [v.slug for v in variants])
        if twin := next((v for v in variants if v.run == variant.run), None):
            notes.append(f"{name} is the base." if twin is first else f"{name} is the same run as {twin.name}.")
            continue
        variants.append(variant)
    if len(variants) == 1:
        raise GemkitError(
            "there is nothing to compare: " + ("every variant is the base" if notes else "the study has no variants"),
            where="gemkit ablate",
            allowed="toggles whose values differ from the base's",
            fix="--toggle interaction=wukong,dcnv2",
        )
    return Plan(
        config=config, variants=tuple(variants), seeds=config.seed_list, config_dirs=folders, notes=tuple(notes)
    )


def make_base(words: tuple[str, ...], registry: Registry, config_dirs: Sequence[Path]) -> Variant:
    """The base run.

    Raises:
        GemkitError: It does not compose.
    """
    run = _compose(BASE, words, registry, config_dirs)
    return Variant(name=BASE, slug=BASE, words=(), overrides=words, run=run)


def make_variant(
    name: str,
    words: tuple[str, ...],
    base: Variant,
    registry: Registry,
    config_dirs: Sequence[Path],
    slugs: Sequence[str],
) -> Variant:
    """The base run with these words after its own.

    Args:
        slugs: Names of folders that are taken.

    Raises:
        GemkitError: It does not compose; says that it is this variant.
    """
    overrides = (*_still_meant(base.overrides, words, base.run, registry, config_dirs), *words)
    run = _compose(name, overrides, registry, config_dirs)
    return Variant(name=name, slug=_slug(name, slugs), words=words, overrides=overrides, run=run)


def _named_words(
    config: StudyConfig, registry: Registry, config_dirs: Sequence[Path]
) -> list[tuple[str, tuple[str, ...]]]:
    """Name and words of each variant: those of the toggles, then those that have a name."""
    toggles = [expand_toggle(text, registry, config_dirs) for text in config.toggles]
    combinations = itertools.product(*toggles) if config.grid else ((word,) for words in toggles for word in words)
    found = [(" ".join(words), words) for words in combinations if words]
    for name, words in config.variants.items():
        if name == BASE or any(name == other for other, _ in found):
            raise GemkitError(f"two variants are called {name}", where="variants", fix="give one another name")
        if not name.strip() or not name.isprintable() or len(name) > 100:
            raise GemkitError(
                f"{shown(name)} is no name for a variant", where="variants", allowed="1 to 100 characters on one line"
            )
        found.append((name, words))
    return found


def _compose(name: str, words: Sequence[str], registry: Registry, config_dirs: Sequence[Path]) -> RunConfig:
    """
    Raises:
        GemkitError: The words do not compose; says of which variant they are.
    """
    try:
        for word in words:
            if (key := _key(word)) in OWN:
                raise GemkitError(f"the study itself sets {key}", where=word, fix=f"{OWN[key]}, without {word}")
        return compose(words, registry, config_dirs)
    except GemkitError as error:
        variant = "the base run" if name == BASE else f"variant {shown(name)}"
        where = f"{error.where}, in {variant}" if error.where else variant
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error


def _still_meant(
    base: Sequence[str], words: Sequence[str], run: RunConfig, registry: Registry, config_dirs: Sequence[Path]
) -> list[str]:
    """The base's words without values of components that a variant swaps: they were meant for the base's choice."""
    swapped = set()
    for word in words:
        if (kind := _key(word)) in KINDS:
            with contextlib.suppress(GemkitError):  # composing all of it says what is wrong
                if _name(compose_section(kind, [word], registry, config_dirs)) != _name(getattr(run, kind)):
                    swapped.add(kind)
    return [word for word in base if section_of(_key(word)) not in swapped or _key(word) in KINDS]


def _key(word: str) -> str:
    """The key of an override: of ``++train.epochs=2``, ``train.epochs``."""
    return word.partition("=")[0].lstrip("+~")


def _name(component: Any) -> str | None:
    return component.name if component else None


def _slug(name: str, taken: Sequence[str]) -> str:
    """A file name that tells the variant from the others."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "variant"
    candidates = (clean if i == 1 else f"{clean}-{i}" for i in itertools.count(1))
    return next(slug for slug in candidates if slug not in taken)
