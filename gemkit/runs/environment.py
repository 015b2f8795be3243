"""What a run ran on: enough to explain why it differs from another."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gemkit

PACKAGES = (
    "torch",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "triton",
    "lightning",
    "torchmetrics",
    "tensordict",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "pluggy",
    "numpy",
    "pyarrow",
    "duckdb",
    "rich",
    "matplotlib",
)


def describe_environment(plugins: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Versions, hardware and git state, ready for JSON; what is unknown is None.

    Args:
        plugins: Plugin -> version.
    """
    return {
        "gemkit": gemkit.__version__,
        "git": git_state(Path(gemkit.__file__).resolve().parents[1]),
        "plugins": dict(plugins or {}),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        **_torch_facts(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether there are changes to tracked files, if `folder` is the top of a git checkout.

    Only the top: a package installed somewhere below an unrelated checkout has no commit of its own.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder.resolve():
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str | None:
    """The processor's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cores() -> int | None:
    """Cores that this process may use."""
    # os.cpu_count() counts the machine's cores; a container or taskset may allow fewer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _torch_facts() -> dict[str, Any]:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            gpus.append(
                {
                    "name": facts.name,
                    "memory_bytes": facts.total_memory,
                    "compute_capability": f"{facts.major}.{facts.minor}",
                }
            )
    return {
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }
