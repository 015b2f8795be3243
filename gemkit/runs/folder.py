"""The run folder: everything that a run leaves behind, under names that do not change.

runs/2026-11-22_10-15-03_wukong-pyramid-interformer_s1/
    config.yaml        the composed config
    command.txt        the command that reproduces the run
    environment.json   versions, hardware, git commit
    metrics.jsonl      history, a row each {"step", "split", ...}
    metrics.json       final metrics
    curves.png         the history as a picture
    checkpoints/       best, last and a few older ones
    log.txt            what was printed, and why it ended
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import re
import shlex
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError, did_you_mean
from gemkit.runs.environment import describe_environment
from gemkit.runs.files import replacing, write_text, writing_failed

CONFIG = "config.yaml"
COMMAND = "command.txt"
ENVIRONMENT = "environment.json"
HISTORY = "metrics.jsonl"
METRICS = "metrics.json"
CURVES = "curves.png"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """One run's folder; make it with `create`, come back to it with `open`."""

    path: Path

    @classmethod
    def create(
        cls,
        runs: Path,
        slug: str,
        config_yaml: str,
        command: Sequence[str],
        plugins: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Makes a new folder ``<time>_<slug>`` in `runs`; it appears complete or not at all.

        Args:
            slug: Short text that tells runs apart; characters that do not belong in a file name become "-".
            command: The words of the command that reproduces the run.
            plugins: Plugin -> version, for environment.json.

        Raises:
            GemkitError: `runs` cannot be written.
        """
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        clean = re.sub(r"[^A-Za-z0-9._=-]+", "-", slug).strip("-.")[:100] or "run"
        draft = runs / f".new-{uuid.uuid4().hex[:8]}"
        try:
            runs.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
            (draft / CHECKPOINTS).mkdir()
            (draft / CONFIG).write_text(config_yaml, encoding="utf-8")
            (draft / COMMAND).write_text(shlex.join(command) + "\n", encoding="utf-8")
            environment = json.dumps(describe_environment(plugins), indent=2)
            (draft / ENVIRONMENT).write_text(environment + "\n", encoding="utf-8")
            (draft / HISTORY).touch()
            return cls(_rename_to_free_name(draft, f"{stamp}_{clean}"))
        except OSError as error:
            raise writing_failed(runs, error.errno or 0) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run folder at `path`.

        Raises:
            GemkitError: There is no such folder, or it is not a run folder.
        """
        if not path.is_dir():
            names = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
            what = "is a file" if path.exists() else "does not exist"
            raise GemkitError(f"{path} {what}", where="RUN", allowed="a run folder", fix=did_you_mean(path.name, names))
        if not (path / CONFIG).is_file() or not (path / CHECKPOINTS).is_dir():
            raise GemkitError(
                f"{path} is not a run folder",
                where="RUN",
                allowed=f"a folder that `gemkit train` made, with {CONFIG} and {CHECKPOINTS}/",
                fix="name one of the folders inside" if _holds_runs(path) else None,
            )
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def curves(self) -> Path:
        return self.path / CURVES

    @property
    def config_yaml(self) -> str:
        return (self.path / CONFIG).read_text(encoding="utf-8")

    def append(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds a row to metrics.jsonl; it is in the file when this returns.

        Raises:
            GemkitError: The file cannot be written.
        """
        row = json.dumps(json_ready({"step": step, "split": split, **values}), allow_nan=False)
        path = self.path / HISTORY
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            raise writing_failed(path, error.errno or 0) from error

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut off is left out.

        Raises:
            GemkitError: A line is not a row; it is named.
        """
        path = self.path / HISTORY
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = []
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith("\n"):
                break  # the process was killed while writing it
            try:
                row = json.loads(line)
                row["step"], row["split"]
            except (ValueError, TypeError, KeyError) as error:
                raise GemkitError(
                    f"{path} holds something that is not a row of metrics",
                    where=f"line {number}",
                    allowed='a JSON object with "step" and "split"',
                    fix="remove the line",
                ) from error
            rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Drops rows after `step`, and a line that was cut off: for resuming from a checkpoint of that step."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_text(self.path / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json: ``{"test": {task: {...}}, "train": {...}}``."""
        text = json.dumps(json_ready(metrics), indent=2, allow_nan=False)
        write_text(self.path / METRICS, text + "\n")

    def metrics(self) -> dict[str, Any]:
        """What `write_metrics` wrote.

        Raises:
            GemkitError: The run has not finished, so there is none; or it is damaged.
        """
        path = self.path / METRICS
        if not path.exists():
            raise GemkitError(
                f"{path} does not exist: the run has not finished",
                where=METRICS,
                fix=f"gemkit train --resume {shlex.quote(str(self.path))}",
            )
        try:
            loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise GemkitError(
                f"{METRICS} is damaged: {error}",
                where=str(path),
                fix=f"gemkit train --resume {shlex.quote(str(self.path))} writes it anew",
            ) from error
        return loaded

    def draw_curves(self) -> None:
        """Draws curves.png from metrics.jsonl."""
        from gemkit.runs.curves import draw_curves

        with replacing(self.curves) as temporary:
            draw_curves(self.rows(), temporary, title=self.path.name)


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinity as None, which JSON can hold, and 0-dim tensors and NumPy scalars as numbers."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if not isinstance(value, str | int | float | bool | None) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rename_to_free_name(draft: Path, name: str) -> Path:
    for attempt in itertools.count(1):
        target = draft.with_name(name if attempt == 1 else f"{name}-{attempt}")
        try:
            draft.rename(target)  # refuses a target that holds files, so two runs never share a folder
        except OSError:
            if not target.exists():
                raise
        else:
            return target
    raise AssertionError("unreachable")


def _holds_runs(path: Path) -> bool:
    return any((child / CONFIG).is_file() for child in path.iterdir() if child.is_dir())
