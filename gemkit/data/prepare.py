"""From a data component's config to an open data set: fetch what is missing, build what is missing or outdated."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from gemkit.component import ComponentSpec
from gemkit.config.run import DataConfig
from gemkit.data import storage
from gemkit.data.append import append
from gemkit.data.build import Share, Work, build
from gemkit.data.compact import compact
from gemkit.data.dataset import Dataset
from gemkit.data.engine import Limits
from gemkit.errors import GemkitError
from gemkit.interfaces import DataRecipe

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

LOCK_TIMEOUT_S = 3600.0


def dataset_folder(config: DataConfig) -> Path:
    """Where the built data set lives."""
    return Path(config.root) / config.folder_name


def raw_folder(config: DataConfig) -> Path:
    """Where the source files live; data sets that one recipe builds from the same files share them."""
    return Path(config.root) / "raw" / config.name


def is_current(config: DataConfig) -> bool:
    """Whether the dataset folder is there, of this gemkit's format, and built with the config's options."""
    manifest = storage.read_manifest(dataset_folder(config))
    return (
        manifest is not None
        and manifest.get("format_version") == storage.FORMAT_VERSION
        and manifest.get("options") == config.build_options
    )


def prepare(
    spec: ComponentSpec, config: DataConfig, fetching: Progress, building: Progress, say: Say | None = None
) -> Dataset:
    """Opens the data set of a recipe, and fetches and builds it first where that is needed.

    Args:
        fetching, building: Progress in bytes and in steps: (name, done, in all; 0 if unknown).
        say: Prints a line for the user, such as the terms of use; default: on stderr.
    """
    if not is_current(config):
        fetch_files(spec, config, fetching, say)
        build_dataset(spec, config, building)
    return Dataset.open(dataset_folder(config))


def fetch_files(spec: ComponentSpec, config: DataConfig, ui: Progress, say: Say | None = None) -> Path:
    """Fetches a recipe's source files, printing the terms of use the first time."""
    folder = raw_folder(config)
    recipe: DataRecipe = spec.cls(config)
    with _lock(folder):
        if recipe.terms and not (folder.is_dir() and any(folder.iterdir())):
            (say or _say_on_stderr)(recipe.terms)
        recipe.fetch(folder, ui)
    return folder


def build_dataset(
    spec: ComponentSpec,
    config: DataConfig,
    ui: Progress,
    *,
    again: bool = False,
    limits: Limits | None = None,
    share: Share | None = None,
) -> Path:
    """Builds the dataset folder from fetched files, unless it is current; `again`: even then.

    Args:
        share: Build these partitions only; `merge_dataset` makes the data set of them.

    Raises:
        GemkitError: The files cannot be built from, or what is there is damaged.
    """
    folder = dataset_folder(config)
    # Machines that share a folder work side by side, each on partitions of its own.
    with contextlib.nullcontext() if share else _lock(folder):
        if again or not is_current(config):  # asked again under the lock: another process may just have built it
            recipe: DataRecipe = spec.cls(config)
            build(recipe.source(raw_folder(config)), folder, ui, config.build_options, limits, share)
        if share is None:
            Dataset.open(folder)  # which looks whether all in it is right
    return folder


def merge_dataset(spec: ComponentSpec, config: DataConfig, ui: Progress) -> Path:
    """Makes the dataset folder of partitions that were built one share at a time.

    Raises:
        GemkitError: Some are missing, or were not built from the same files.
    """
    folder = dataset_folder(config)
    with _lock(folder):
        source = spec.cls(config).source(raw_folder(config))
        Work(folder, source, config.build_options, Limits(), Share(), ui).finish()
        Dataset.open(folder)
    return folder


def append_dataset(
    spec: ComponentSpec, config: DataConfig, ui: Progress, *, limits: Limits, split: str | None, drop_late: bool
) -> dict[str, int]:
    """Adds the rows of a recipe's source to the data set in its folder; returns rows that were left out, by table.

    Raises:
        GemkitError: As `gemkit.data.append.append`.
    """
    folder = dataset_folder(config)
    with _lock(folder):
        source = spec.cls(config).source(raw_folder(config))
        late = append(source, folder, ui, config.build_options, limits, split=split, drop_late=drop_late)
        Dataset.open(folder)
    return late


def compact_dataset(config: DataConfig, ui: Progress) -> bool:
    """Merges the segments of a data set; returns whether there were several.

    Raises:
        GemkitError: As `gemkit.data.compact.compact`.
    """
    folder = dataset_folder(config)
    with _lock(folder):
        return compact(folder, ui)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time. The operating system frees the lock of a process that dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    try:
        with filelock.FileLock(path, timeout=LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as error:
        raise GemkitError(
            f"another process has been working on {folder} for an hour", where=str(path), fix="wait for it or end it"
        ) from error


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)
