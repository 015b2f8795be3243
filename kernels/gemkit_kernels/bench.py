"""Checks the kernels on a GPU, then times them beside what else there is.

    python -m gemkit_kernels.bench --out DIR [--ops OP ...] [--minutes 7]

Needs torch >= 2.11 and triton >= 3.6 and nothing else. First the card's own ceilings (a large copy, a large product);
then every operation against its reference in float64, forward and gradients; then the cases of `<op>/bench.py`: medians
of device time with inputs that no cache holds. Writes DIR/kernels.json, case by case; ends with code 1 if a result was
wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch._functorch import config as functorch_config

from gemkit_kernels import OPS, timing
from gemkit_kernels.compare import LIMITS


def checks(op: str) -> list[dict[str, Any]]:
    """Relative errors of one operation against its reference, and whether they are within the limit of their type."""
    rows = []
    for name, dtype, found in importlib.import_module(f"gemkit_kernels.{op}.bench").checks():
        worst = max(found.values())
        rows.append({"case": name, "dtype": str(dtype), "errors": found, "right": worst <= LIMITS[dtype]})
        print(f"{op:16} {name:50} {str(dtype)[6:]:9} worst error {worst:.1e}", "" if rows[-1]["right"] else "WRONG")
    return rows


def measure(
    case: timing.Case, ceiling: dict[str, float], started: dict[str, str | None], deadline: float
) -> dict[str, Any]:
    """Times of every candidate of a case that could be started (`started`: its error, or None)."""
    rows: dict[str, Any] = {}
    for name, call in case.calls.items():
        if started.get(name, "it could not be compiled in time") is not None:
            rows[name] = {"error": started.get(name, "it could not be compiled in time")}
            _print(case, name, rows[name])
            continue
        if time.monotonic() > deadline:
            rows[name] = {"skipped": "no time was left"}
            continue
        torch.compiler.reset()
        torch.cuda.empty_cache()
        try:
            found = timing.times(case, call)
        except Exception as error:
            rows[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            traceback.print_exc()
        else:
            rows[name] = {**found, **timing.rates(case, found, ceiling)}
            if name == "triton":
                rows[name]["waits_for_device"] = timing.waits(case, call)
        _print(case, name, rows[name])
    return {
        "op": case.op,
        "case": case.name,
        "floor": {k: getattr(case, k) for k in ("forward_bytes", "forward_flop", "backward_bytes", "backward_flop")},
        "candidates": rows,
    }


def hardware() -> dict[str, Any]:
    """The card and the versions."""
    import triton

    card = torch.cuda.get_device_properties(0)
    return {
        "gpu": card.name,
        "memory_gb": card.total_memory / 1e9,
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def start(op: str, path: Path) -> None:
    """Starts each candidate once, so that nothing is left to be compiled, and writes the errors of each to `path`."""
    started: dict[str, dict[str, str | None]] = {}
    for case in _cases(op):
        started[case.name] = {}
        for name, call in case.calls.items():
            torch.compiler.reset()
            torch.cuda.empty_cache()  # other processes need the memory, too
            started[case.name][name] = None
            try:
                if name != "padded":  # takes memory and has nothing to compile
                    timing.step(case, call, case.inputs(0))
            except torch.OutOfMemoryError:
                pass  # what other processes hold now is free when it is timed
            except Exception as error:
                started[case.name][name] = f"{type(error).__name__}: {str(error)[:500]}"
            _write(path, started)


def prepared(ops: list[str], deadline: float) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Checks of all operations and errors of all candidates, all at once; what is not ready in time is ended."""
    with tempfile.TemporaryDirectory() as folder:
        processes = {}
        for op in ops:
            for what in ("check", "start"):
                command = [sys.executable, "-m", "gemkit_kernels.bench", "--out", f"{folder}/{op}", f"--{what}", op]
                processes[op, what] = subprocess.Popen(command)
        for process in processes.values():
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        checked, started = {}, {}
        for op in ops:
            code = processes[op, "check"].returncode
            wrong = [{"case": "all", "error": f"ended with code {code}", "right": False}]
            checked[op] = _read(Path(folder) / op / "checks.json", wrong)
            started[op] = _read(Path(folder) / op / "started.json", {})
        return checked, started


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of kernels.json")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--minutes", type=float, default=7.0, help="no candidate is begun after that")
    parser.add_argument("--check", choices=OPS, help=argparse.SUPPRESS)
    parser.add_argument("--start", choices=OPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gemkit_kernels.bench needs an NVIDIA GPU; torch sees none", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    # Backward passes are timed again and again over one forward pass.
    functorch_config.donated_buffer = False
    if options.check:
        _write(options.out / "checks.json", checks(options.check))
        return 0
    if options.start:
        start(options.start, options.out / "started.json")
        return 0
    began = time.monotonic()
    deadline = began + 60 * options.minutes
    report: dict[str, Any] = {"hardware": hardware(), "ceilings": timing.ceilings(), "cases": []}
    print(json.dumps({**report["hardware"], **report["ceilings"]}), flush=True)
    torch.cuda.empty_cache()
    report["checks"], started = prepared(options.ops, began + 30 * options.minutes)
    _write(options.out / "kernels.json", report)
    for op in options.ops:
        for case in _cases(op):
            report["cases"].append(measure(case, report["ceilings"], started[op].get(case.name, {}), deadline))
            _write(options.out / "kernels.json", report)
    wrong = [row for rows in report["checks"].values() for row in rows if not row["right"]]
    print(f"{len(wrong)} wrong results", *wrong, sep="\n")
    return int(bool(wrong))


def _cases(op: str) -> list[timing.Case]:
    found: list[timing.Case] = importlib.import_module(f"gemkit_kernels.{op}.bench").cases()
    return found


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _print(case: timing.Case, name: str, row: dict[str, Any]) -> None:
    numbers = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))
    print(f"{case.op:16} {case.name:30} {name:16} {numbers or row}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
