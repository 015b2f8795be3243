"""`gemkit doctor`: what is installed, which versions work together, what works here, and what mends the rest."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from gemkit import __version__
from gemkit.doctor_checks import CHECKS, NVIDIA_DRIVER

PACKAGES = (
    "torch",
    "lightning",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "triton",
    "hydra-core",
    "omegaconf",
    "pluggy",
    "tensordict",
    "torchmetrics",
    "numpy",
    "pyarrow",
)

KNOWN_TO_WORK = (
    {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0", "source": "CPU builds, tested with gemkit"},
    {"torch": "2.10", "torchrec": "1.5", "fbgemm": "1.5", "source": "FBGEMM's release table, not tested with gemkit"},
    {"torch": "2.9", "torchrec": "1.4", "fbgemm": "1.4", "source": "FBGEMM's release table, not tested with gemkit"},
)
"""Versions that belong together. TorchRec X.Y is released with FBGEMM X.Y, both for one PyTorch release."""

MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that steal credentials when imported (GHSA-w37p-236h-pfx3)."""

REQUIRED = ("cpu", "default run")
"""Checks without which no training run starts on a CPU."""

TIMEOUT_S = 180.0

Installed = Mapping[str, str | None]
TORCH = "torch==2.13.0"
SHARDED_CPU = (
    "pip install fbgemm-gpu-cpu==1.8.0 tensordict torchmetrics==1.0.3 pyre-extensions tqdm && "
    "pip install --no-deps torchrec==1.8.0"
)
SHARDED_CUDA = "pip install fbgemm-gpu==1.8.0 torchrec==1.8.0"


def examine(
    facts: Callable[[dict[str, Any]], object] = lambda report: None,
    seen: Callable[[dict[str, Any]], object] = lambda check: None,
) -> dict[str, Any]:
    """Runs all checks.

    Args:
        facts: Called with the report before the checks run.
        seen: Called with each check when it is done: name, status, detail, fix, required.

    Returns:
        `gemkit`, `python`, `installed`, `known_to_work`, `checks`, and `ok`: whether a CPU training run can start.
    """
    found = installed()
    report: dict[str, Any] = {
        "gemkit": __version__,
        "python": platform.python_version(),
        "installed": found,
        "known_to_work": list(KNOWN_TO_WORK),
    }
    facts(report)
    checks = []
    version_checks = [check_malicious(found), check_versions(found)]
    safe = version_checks[0]["status"] == "ok"
    for check in version_checks:
        seen(check)
        checks.append(check)
    for name in CHECKS if safe else ():  # a check may import what steals credentials
        check = live_check(name, found)
        seen(check)
        checks.append(check)
    report["checks"] = checks
    report["ok"] = safe and not any(c["required"] and c["status"] in ("broken", "absent") for c in checks)
    return report


def installed() -> dict[str, str | None]:
    """Distribution -> version, or None."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def check_malicious(found: Installed) -> dict[str, Any]:
    """No release is installed that is known to be malicious."""
    bad = [f"{name} {found.get(name)}" for name, versions in MALICIOUS.items() if found.get(name) in versions]
    if not bad:
        return _check("releases", "ok", "none that is known to be malicious", required=True)
    return _check(
        "releases",
        "broken",
        f"{', '.join(bad)} is MALICIOUS: it steals credentials when imported (GHSA-w37p-236h-pfx3)",
        'pip uninstall -y lightning && pip install "lightning>=2.6.4"; then replace every credential of this machine',
        required=True,
    )


def check_versions(found: Installed) -> dict[str, Any]:
    """torch, torchrec and fbgemm are of one release."""
    gpu, cpu = found.get("fbgemm-gpu"), found.get("fbgemm-gpu-cpu")
    torch, torchrec = found.get("torch"), found.get("torchrec")
    if gpu and cpu:
        return _check(
            "versions",
            "broken",
            "fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files",
            f"pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && {_sharded(torch)}",
        )
    if not torch:
        return _check("versions", "broken", "torch is not installed", f"pip install {TORCH}", required=True)
    fbgemm = gpu or cpu
    text = f"torch {torch}, torchrec {torchrec or '-'}, fbgemm {fbgemm or '-'}"
    if not (torchrec and fbgemm):
        return _check(
            "versions", "absent", f"{text}: one process works, sharded embeddings need all three", _sharded(torch)
        )
    for row in KNOWN_TO_WORK:
        if all(
            _matches(have, row[name]) for name, have in (("torch", torch), ("torchrec", torchrec), ("fbgemm", fbgemm))
        ):
            return _check("versions", "ok", f"{text}: {row['source']}")
    status = "doubt" if _minor(torchrec) == _minor(fbgemm) else "broken"
    return _check(
        "versions", status, f"{text} are not known to work together", f"pip install {TORCH} && {_sharded(torch)}"
    )


def live_check(name: str, found: Installed) -> dict[str, Any]:
    """Runs one check in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gemkit.doctor_checks", name], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        answer = {"status": "broken", "detail": f"no answer within {TIMEOUT_S:.0f} s"}
    else:
        try:
            answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        except json.JSONDecodeError:
            last = done.stderr.strip().rpartition("\n")[2]
            answer = {"status": "broken", "detail": f"the process ended with code {done.returncode}: {last}"}
    fix = None if answer["status"] == "ok" else fix_of(name, found)
    return _check(name, answer["status"], answer["detail"], fix, required=name in REQUIRED)


def fix_of(name: str, found: Installed) -> str | None:
    """The command that mends what a check found, or None: there is no GPU to be mended."""
    torch = found.get("torch")
    has_gpu = NVIDIA_DRIVER.exists()
    fixes = {
        "cpu": f"pip install --force-reinstall {TORCH}",
        "default run": "gemkit components",
        "cuda": f"pip install --force-reinstall {TORCH}" if has_gpu else None,
        "triton": "pip install triton",
        "fbgemm": _sharded(torch),
        "torchrec": _sharded(torch),
        "compile": "sudo apt-get install -y g++ python3-dev; until then train.compile=false (the default)",
        "bf16": "train.precision=fp32 (the default)",
    }
    return fixes[name]


def render_facts(report: Mapping[str, Any]) -> str:
    """Versions, and which belong together."""
    lines = [f"gemkit {report['gemkit']}, Python {report['python']}", "", "installed"]
    lines += [f"  {name:<16}{version or '-'}" for name, version in report["installed"].items()]
    lines += ["", "known to work together (TorchRec X.Y is released with FBGEMM X.Y, both for one PyTorch release)"]
    lines.append(f"  {'torch':<9}{'torchrec':<10}{'fbgemm':<9}")
    lines += [f"  {r['torch']:<9}{r['torchrec']:<10}{r['fbgemm']:<9}{r['source']}" for r in report["known_to_work"]]
    return "\n".join([*lines, "", "works here"])


def render_check(check: Mapping[str, Any]) -> str:
    """One check: ok, a reservation (!!), not there (--), or broken (XX), with the command that mends it."""
    broken = "XX" if check["required"] else "!!"
    mark = {"ok": "ok", "doubt": "!!", "absent": "--", "broken": broken}[check["status"]]
    if check["required"] and check["status"] == "absent":
        mark = "XX"
    text = f"  {mark} {check['name']:<12} {check['detail']}"
    return text + (f"\n{'':<18}mend: {check['fix']}" if check["fix"] else "")


def _check(name: str, status: str, detail: str, fix: str | None = None, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "status": status, "detail": detail, "fix": fix, "required": required}


def _sharded(torch: str | None) -> str:
    """The command that installs TorchRec for this build of torch. Its own requirement is FBGEMM's CUDA build."""
    return SHARDED_CPU if torch is None or "+cpu" in torch else SHARDED_CUDA


def _matches(have: str, known: str) -> bool:
    return (have.partition("+")[0] + ".").startswith(known + ".")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
