"""What is inside a run folder, told without building the model: config, state, checkpoints, tensors, metrics."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gemkit.component import KINDS
from gemkit.config.files import read_yaml
from gemkit.errors import GemkitError
from gemkit.runs import checkpoint, keeping
from gemkit.runs.folder import CONFIG, ENVIRONMENT, METRICS, RunFolder
from gemkit.runs.lock import describe_owner, is_locked
from gemkit.runs.tables import print_table
from gemkit.runs.wording import key_metrics

OPTIMISER_STATE = ("optimizer", "rng", "table_squares", "losses")
"""First words of tensors that only training needs."""


def inspect_run(path: Path, verify: bool = False) -> dict[str, Any]:
    """Facts about a run folder, ready for JSON.

    Keys: `run`, `state`, `step`, `sentence` (kind -> component), `seed`, `environment`, `checkpoints` (a list, each
    with `file`, `step`, `epoch`, `bytes`, `written`, `tensors`, `sound`, `problem`), `parameters` (module -> number),
    `schema`, `fingerprint`, `metrics`.

    Args:
        verify: Read every checkpoint whole and compare its sha256; else `sound` is None for those that look right.

    Raises:
        GemkitError: It is not a run folder, or its config is broken.
    """
    folder = RunFolder.open(path)
    config = read_yaml(folder.path / CONFIG)
    files = [folder.checkpoints / keeping.BEST, folder.checkpoints / keeping.LAST, *keeping.older(folder.checkpoints)]
    rows = [_checkpoint(file, verify) for file in files if file.exists()]
    summary = _newest_summary(files)
    metrics = folder.metrics() if (folder.path / METRICS).exists() else None
    step = max((row["step"] for row in rows if isinstance(row["step"], int)), default=None)
    return {
        "run": str(path),
        "state": _state(folder.path, metrics is not None, step),
        "step": step,
        "sentence": {kind: _choice(config.get(kind)) for kind in KINDS},
        "seed": config.get("seed"),
        "environment": _environment(folder.path),
        "checkpoints": rows,
        "parameters": _parameters(summary) if summary else {},
        "schema": _mapping(summary.state.get("schema")).get("name") if summary else None,
        "fingerprint": summary.state.get("fingerprint") if summary else None,
        "metrics": metrics,
    }


def print_run(facts: Mapping[str, Any], console: Console) -> None:
    """`inspect_run`'s facts for people."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    environment = facts["environment"]
    line(f"{facts['run']}\n  {facts['state']}")
    line("  " + " ".join(f"{kind}={name}" for kind, name in facts["sentence"].items()) + f" seed={facts['seed']}")
    line(f"  gemkit {environment.get('gemkit')}, torch {environment.get('torch')}, commit {environment.get('commit')}")
    if isinstance(facts["fingerprint"], str):
        line(f"  data set '{facts['schema']}', fingerprint {facts['fingerprint'][:12]}")
    line("")
    header = ["checkpoint", "step", "epoch", "tensors", "MB", "written", "sound"]
    table = []
    for row in facts["checkpoints"]:
        sound = {None: "not read", True: "yes", False: f"NO: {row['problem']}"}[row["sound"]]
        numbers = [_cell(row[key]) for key in ("step", "epoch", "tensors")]
        table.append([row["file"], *numbers, f"{row['bytes'] / 1e6:,.1f}", row["written"], sound])
    print_table("checkpoints", header, table, console)
    parameters = facts["parameters"]
    rows = [[name, f"{number:,}"] for name, number in parameters.items()]
    print_table("parameters", ["", "number"], [*rows, ["all", f"{sum(parameters.values()):,}"]], console)
    for task, values in ((facts["metrics"] or {}).get("test") or {}).items():
        line(f"test {task}: {key_metrics(values)}")


def _choice(section: Any) -> str:
    return str(section.get("name") if isinstance(section, Mapping) else section or "none")


def _environment(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / ENVIRONMENT).read_text(encoding="utf-8"))
        commit = (facts.get("git") or {}).get("commit")
        return {"gemkit": facts.get("gemkit"), "torch": facts["packages"]["torch"], "commit": commit}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _state(path: Path, finished: bool, step: int | None) -> str:
    if is_locked(path):
        return f"running: {describe_owner(path)}"
    if finished:
        return "finished"
    stand = "before its first checkpoint" if step is None else f"with a checkpoint of step {step:,}"
    return f"stopped {stand}; go on: gemkit train --resume {path}"


def _checkpoint(file: Path, verify: bool) -> dict[str, Any]:
    facts = file.stat()
    written = datetime.datetime.fromtimestamp(facts.st_mtime).isoformat(sep=" ", timespec="seconds")
    row: dict[str, Any] = {"file": file.name, "step": None, "epoch": None, "tensors": None, "bytes": facts.st_size}
    row |= {"written": written, "sound": None, "problem": None}
    try:
        summary = checkpoint.summarise(file)
        counters = _mapping(summary.state.get("counters")) or summary.state
        row |= {"step": counters.get("step"), "epoch": counters.get("epoch"), "tensors": len(summary.tensors)}
        parts = [file.parent / checkpoint.PARTS / Path(str(name)).name for name in _parts(summary)]
        row["bytes"] += sum(part.stat().st_size for part in parts if part.is_file())
        if verify:
            checkpoint.load(file)[0].verify()
            row["sound"] = True
    except GemkitError as error:
        row |= {"sound": False, "problem": error.what}
    return row


def _parts(summary: checkpoint.Summary) -> Sequence[object]:
    """Names of the files that hold what processes wrote of a checkpoint."""
    files = _mapping(summary.state.get(checkpoint.PARTS)).get("files")
    return files if isinstance(files, list) else ()


def _newest_summary(files: list[Path]) -> checkpoint.Summary | None:
    for file in files:
        try:
            return checkpoint.summarise(file)
        except GemkitError:
            continue
    return None


def _parameters(summary: checkpoint.Summary) -> dict[str, int]:
    """Numbers of each part: dense.tokenizer, dense.blocks.0, ..., tables.<name>."""
    parts: dict[str, int] = {}
    for name, (_, shape) in summary.tensors.items():
        words = name.split(".")
        if words[0] in OPTIMISER_STATE:
            continue
        part = ".".join(words[: 3 if words[1:2] == ["blocks"] else 2])
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return dict(sorted(parts.items()))


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value`, or nothing: a stranger's header may hold anything."""
    return value if isinstance(value, Mapping) else {}


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
