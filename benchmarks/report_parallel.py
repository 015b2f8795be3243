"""Tables of docs/results.md about several processes; `report.py` fills them in."""

from __future__ import annotations

from collections import Counter
from typing import Any


def kills(report: dict[str, Any]) -> str:
    """How many were killed when, and what came out."""
    when = Counter(kill["while"] for kill in report["kills"])
    told = ", ".join(f"{number} while {what}" for what, number in sorted(when.items()))
    same = [("history", "same_history"), ("metrics", "same_metrics"), ("weights", "same_weights")]
    lines = [
        "| kills | steps of the run | ended by itself | " + " | ".join(f"same {name}" for name, _ in same) + " |",
        "|---|---|---|---|---|---|",
        f"| {len(report['kills'])} of {report['processes']} processes: {told} | {report['steps']} "
        f"| {_word(report['exit_code'] == 0)} | " + " | ".join(_word(report[key]) for _, key in same) + " |",
    ]
    return "\n".join(lines) + "\n"


def speed(report: dict[str, Any]) -> str:
    """Rates and processor time of layouts beside one process; what a checkpoint costs."""
    lines = [
        "| layout | examples/s | of `single` | processor time a step, of `single` |",
        "|---|---|---|---|",
    ]
    for name, row in report["layouts"].items():
        lines.append(
            f"| {name} | {row['examples_per_s']:,.0f} | {row['rate_of_single']:.2f}x | {row['busy_of_single']:.2f}x |"
        )
    size = f"{report['checkpoint_bytes'] / 1e6:.0f} MB"
    lines += ["", f"| checkpoints of {size} written | training waits for one |", "|---|---|"]
    for name, seconds in report["checkpoint_wait_s"].items():
        lines.append(f"| {name} | {1000 * seconds:.0f} ms |")
    return "\n".join(lines) + "\n"


def planned(report: dict[str, Any]) -> str:
    """Planned and measured steps, and what each world size keeps of the speed of one process."""
    lines = [
        "| processes | gloo's all-gather | of a few bytes | step planned | measured | planned / measured "
        "| scaling planned | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["compared"]:
        size = row["world_size"]
        told = report["told"][str(size)]
        network = f"{told['gather_bytes_per_s'] / 1e9:.2f} GB/s | {1000 * told['latency_s']:.2f} ms"
        lines.append(
            f"| {size} | {'- | -' if size == 1 else network} | {1000 * row['planned_s']:.0f} ms "
            f"| {1000 * row['measured_s']:.0f} ms | {1 + row['error']:.2f} | {row['planned_scaling']:.2f} "
            f"| {row['measured_scaling']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _word(flag: bool) -> str:
    return "yes" if flag else "**no**"
