"""Starts processes as a user does, with torchrun; looks at what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gemkit.runs.folder import RunFolder

HERE = Path(__file__).resolve().parent


def torchrun(processes: int, *words: str, timeout_s: float = 300.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in `processes` processes, one thread each; what it leaves behind when time is up is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **env}
    process = subprocess.Popen(
        [*command, *words],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, "")


def train_in(processes: int, folder: Path, jobs: list[dict[str, Any]], **options: Any) -> None:
    """Trains jobs (see train_worker.py) in `processes` processes.

    Raises:
        AssertionError: They failed; holds the end of what they printed.
    """
    path = folder / f"jobs-{processes}-{len(list(folder.glob('jobs-*')))}.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = torchrun(processes, str(HERE / "train_worker.py"), str(path), **options)
    assert done.returncode == 0, done.stdout[-6000:]


def only_run(runs: Path) -> RunFolder:
    """The folder of the one run in `runs`."""
    (path,) = (p for p in runs.iterdir() if p.is_dir())
    return RunFolder.open(path)


def losses(folder: RunFolder) -> list[float]:
    """One a step."""
    return [row["loss"] for row in folder.rows() if row["split"] == "train"]
