"""What a resumed run may have changed: where things are and how fast they go, but not what is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gemkit.component import NONE
from gemkit.config.build import build_run, load_run_config
from gemkit.config.compose import compose_section, read_words, section_of
from gemkit.config.fields import to_mapping
from gemkit.config.run import READING, RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry

MAY_CHANGE = (
    "runs",
    "train.num_threads",
    "train.compile_cache",
    "train.tensorboard",
    "train.save_predictions",
    "train.autoresume",
    "train.checkpoint_every",
    "train.checkpoint_activations",
    "train.activation_budget",
    "train.async_checkpoints",
    "train.keep_checkpoints",
    "loader.workers",
    "loader.worker_kind",
    "loader.prefetch",
    "loader.pin_memory",
    "data.root",
)
"""Besides the section `parallel`. Of the section `data` a file may differ in more, all that only says how it was built:
the fingerprint tells whether the built data set is the same."""

PRECISION = {"saved_activations": "exact", "embedding_precision": "fp32", "embedding_rounding": "nearest"}
"""Of the section `parallel`, what changes the numbers, and what it is where a backend has no such option."""


def may_differ(key: str) -> bool:
    """Whether a checkpoint's config may differ in a value (of `parallel`, see `PRECISION`)."""
    section, option = re.split(r"[.\[]", f"{key}.")[:2]
    return key in MAY_CHANGE or (section == "data" and option not in READING)


def resumed_config(
    path: Path, overrides: Sequence[str], registry: Registry, config_dirs: Iterable[Path] = ()
) -> RunConfig:
    """A saved ``config.yaml`` with other values where a resumed run may have some.

    Args:
        overrides: ``parallel=choice``, which is composed anew, or ``section.key=value``.

    Raises:
        GemkitError: The file cannot be read, or a word changes what is trained or is not what it should be.
    """
    run = load_run_config(path, registry)
    if not overrides:
        return run
    wanted = read_words(overrides, registry, config_dirs)
    for key in (*wanted.groups, *wanted.values):
        if section_of(key) != "parallel" and key not in MAY_CHANGE:
            raise GemkitError(
                f"--resume goes on with the config of {path.parent}: {key} cannot be changed",
                where="command line",
                allowed=f"parallel, {', '.join(MAY_CHANGE)}",
                fix=f"gemkit train --resume {path.parent}, or a new run without --resume",
            )
    values: dict[str, Any] = to_mapping(run)
    values = {key: NONE if value is None else value for key, value in values.items()}
    if "parallel" in wanted.groups:
        words = [word for word in overrides if section_of(word.lstrip("+~").partition("=")[0]) == "parallel"]
        values["parallel"] = to_mapping(compose_section("parallel", words, registry, config_dirs))
    for key, value in wanted.plain().items():
        if section_of(key) == "parallel" and "parallel" in wanted.groups:
            continue
        section, _, option = key.rpartition(".")
        if section not in ("", section_of(key)):
            raise GemkitError(f"{key} is a part of a value", where=key, allowed="the whole value: section.key=value")
        (values[section] if section else values)[option] = value
    return build_run(values, registry)
