"""Starts processes as a user does, with torchrun; looks at what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gemkit.runs.folder import RunFolder

HERE = Path(__file__).resolve().parent


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(processes: int, *words: str, timeout_s: float = 300.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in `processes` processes, one thread each; what it leaves behind when time is up is killed."""
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", str(processes), *words]
    (done,) = _started([(command, env)], timeout_s)
    return done


def torchrun_on_machines(
    machines: int, processes: int, *words: str, restarts: int = 0, timeout_s: float = 300.0
) -> list[subprocess.CompletedProcess[str]]:
    """The same as on several machines, as examples/cluster/train.sbatch does it: an agent for each, all here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [*TORCHRUN, f"--nnodes={machines}", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    command += ["--rdzv-backend=c10d", "--rdzv-id=job", f"--rdzv-endpoint=localhost:{port}", *words]
    return _started(machines * [(command, {})], timeout_s)


def srun(machines: int, *words: str, timeout_s: float = 300.0) -> list[subprocess.CompletedProcess[str]]:
    """Runs a script in a process for each machine, in the variables that SLURM sets; all of them here."""
    tasks = {"SLURM_NTASKS": str(machines), "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": str(machines)}
    tasks |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "ads", "SLURM_NODELIST": "localhost"}
    jobs = [
        ([sys.executable, *words], tasks | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0", "SLURM_NODEID": str(i)})
        for i in range(machines)
    ]
    return _started(jobs, timeout_s)


def _started(
    commands: list[tuple[list[str], dict[str, str]]], timeout_s: float
) -> list[subprocess.CompletedProcess[str]]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with contextlib.ExitStack() as files:
        outs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        running = [
            subprocess.Popen(words, env=variables | own, stdout=out, stderr=out, text=True, start_new_session=True)
            for (words, own), out in zip(commands, outs, strict=True)
        ]
        end = time.monotonic() + timeout_s
        try:
            for process in running:
                process.wait(max(0.0, end - time.monotonic()))
        finally:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        done = []
        for process, (words, _), out in zip(running, commands, outs, strict=True):
            out.seek(0)
            done.append(subprocess.CompletedProcess(words, process.returncode, out.read(), ""))
        return done


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
