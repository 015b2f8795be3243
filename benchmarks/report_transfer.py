"""The results page's tables of knowledge transfer."""

from __future__ import annotations

from typing import Any


def transfer(report: Any, with_cost: bool = True) -> str:
    """Each variant's NE and what it gained, one table for each age of the teacher."""
    cost = " MFLOP/example | ms/1,000 examples |" if with_cost else ""
    parts = []
    for one in report["lags"]:
        variants = one["variants"]
        baseline = variants.get("distill", {}).get("test", {}).get("ne", {}).get("difference_from_alone")
        lines = [
            f"{len(report['seeds'])} seeds, teacher {one['lag_days']} days old at the student's first day",
            "",
            f"| | NE | minus alone | gain, of `distill`'s | AUC | calibration |{cost}",
            "|---" * (8 if with_cost else 6) + "|",
        ]
        for name, entry in variants.items():
            ne = entry["test"]["ne"]
            difference = ne.get("difference_from_alone")
            shown = f"{difference['mean']:+.4f} ± {difference['ci95']:.4f}" if difference else "-"
            ratio = f"{difference['mean'] / baseline['mean']:.1f}x" if difference and baseline else "-"
            flops = entry["flops_per_example"]
            cells = (
                f"{ne['mean']:.4f} ± {ne['sd']:.4f}",
                shown,
                ratio,
                f"{entry['test']['auc']['mean']:.4f}",
                f"{entry['test']['calibration']['mean']:.3f}",
                "-" if flops is None else f"{flops / 1e6:.2f}",
                f"{entry['ms_per_1000']:.1f}",
            )
            lines.append(f"| {name} | {' | '.join(cells if with_cost else cells[:-2])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def worlds(report: Any) -> str:
    """Logloss, AUC and calibration of each variant, world by world; differences are from the world's first variant."""
    lines = [
        f"`{report['task']}`, {len(report['seeds'])} seeds",
        "",
        "| | logloss | minus the first, % | AUC | calibration |",
        "|---|---|---|---|---|",
    ]
    for world, variants in report["worlds"].items():
        first = next(iter(variants.values()))["logloss"]["mean"]
        for name, entry in variants.items():
            difference = entry["logloss"].get("difference")
            parts = [100 * difference[key] / first for key in ("mean", "ci95")] if difference else []
            cells = (
                name if len(report["worlds"]) == 1 else f"{world}: {name}",
                f"{entry['logloss']['mean']:.5f}",
                f"{parts[0]:+.2f} ± {parts[1]:.2f}" if parts else "-",
                f"{entry['auc']['mean']:.4f}" if "auc" in entry else "-",
                f"{entry['calibration']['mean']:.3f} ± {entry['calibration']['sd']:.3f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
