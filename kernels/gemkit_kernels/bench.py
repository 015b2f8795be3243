"""Checks the kernels on a GPU, then times them beside what else there is.

    python -m gemkit_kernels.bench --out DIR [--ops OP ...] [--minutes 7]

Needs torch >= 2.11 and triton >= 3.6 and nothing else. First the card's own ceilings (a large copy, a large product);
then every operation against its reference in float64, forward and gradients; then the cases of `<op>/bench.py`: medians
of device time with inputs that no cache holds. Writes DIR/kernels.json, also when something fails or time runs out;
ends with code 1 if a result was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

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


def measure(case: timing.Case, ceiling: dict[str, float], deadline: float) -> dict[str, Any]:
    """Times of every candidate of a case."""
    rows: dict[str, Any] = {}
    for name, call in case.calls.items():
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


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of kernels.json")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--minutes", type=float, default=7.0, help="no candidate is begun after that")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gemkit_kernels.bench needs an NVIDIA GPU; torch sees none", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"hardware": hardware(), "ceilings": timing.ceilings(), "checks": {}, "cases": []}
    print(json.dumps({**report["hardware"], **report["ceilings"]}))
    right = True
    try:
        for op in options.ops:
            try:
                report["checks"][op] = checks(op)
            except Exception as error:
                traceback.print_exc()
                report["checks"][op] = [{"case": "all", "error": str(error)[:2000], "right": False}]
            right &= all(row["right"] for row in report["checks"][op])
        for op in options.ops:
            for case in importlib.import_module(f"gemkit_kernels.{op}.bench").cases():
                report["cases"].append(measure(case, report["ceilings"], deadline))
    finally:
        path = options.out / "kernels.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(path)
    return 0 if right else 1


def _print(case: timing.Case, name: str, row: dict[str, Any]) -> None:
    numbers = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))
    print(f"{case.op:16} {case.name:30} {name:16} {numbers or row}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
