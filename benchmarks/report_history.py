"""The results page's table of long histories."""

from __future__ import annotations

from typing import Any


def long_history(report: Any) -> str:
    """What each variant found, and what a step on the long window costs it."""
    seeds = len(report["seeds"])
    lines = [
        f"{seeds} seeds; differences are over those with which both have found the signal",
        "",
        "| | found it | share learned, by seed | NE minus full attention's, % | MFLOP/example | examples/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in report["variants"].items():
        difference, ne = entry["ne_difference"], entry["ne"]["mean"]
        cells = (
            f"{entry['found']} of {seeds}",
            ", ".join(f"{share:.2f}" for share in entry["learned"]["by_seed"]),
            f"{100 * difference['mean'] / ne:+.2f} ± {100 * difference['ci95'] / ne:.2f}" if difference else "-",
            f"{entry['flops_per_example']['mean'] / 1e6:.1f}",
            f"{entry['examples_per_s']['mean']:,.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
