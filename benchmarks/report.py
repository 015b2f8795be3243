"""Writes the tables of docs/results.md from benchmarks/results/*.json.

python benchmarks/report.py          rewrite the page
python benchmarks/report.py --check  exit 1 if the page and the files disagree
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- table (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
METRICS = {"auc": "AUC", "logloss": "logloss", "ne": "NE", "gauc_impressions": "gAUC (by impressions)"}


SPEED = "examples/s, one thread"


def table(report: dict[str, Any], task: str) -> str:
    """Markdown: mean and standard deviation over seeds; below, the paired difference from the first row."""
    variants = report["variants"]
    first = next(iter(variants.values()))["test"][task]
    metrics = [m for m in METRICS if m in first]
    lines = [
        "| " + " | ".join([f"{len(report['seeds'])} seeds, `{task}`", *(METRICS[m] for m in metrics), SPEED]) + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for name, entry in variants.items():
        cells = []
        for metric in metrics:
            row = entry["test"][task][metric]
            cell = f"{row['mean']:.4f} ± {row['sd']:.4f}"
            if difference := row.get("difference_from_first"):
                cell += f"<br>{difference['mean']:+.4f} ± {difference['ci95']:.4f}"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} | {entry['examples_per_s_one_thread']:,.0f} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        report = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + table(report, match[3]) + match[4]

    filled, count = MARK.subn(fill, text)
    if not count:
        raise SystemExit(f"{PAGE} has no table marks")
    return filled


def main() -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if "--check" in sys.argv:
        if new != old:
            print("docs/results.md and benchmarks/results/ disagree: run python benchmarks/report.py", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
