"""Tables of docs/results.md about kernels; `report.py` fills them in."""

from __future__ import annotations

from typing import Any


def kernels(report: dict[str, Any]) -> str:
    """Every case: times, and shares of the rate of a large copy on the same card."""
    lines = [
        "| operation | case | forward | of a copy's rate | backward | of a copy's rate |",
        "|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        cells = [f"`{case['op']}`", case["case"]]
        for name in ("forward", "backward"):
            if f"{name}_ms" in case:
                cells += [f"{case[f'{name}_ms']:.2f} ms", f"{case[f'{name}_of_copy']:.0%}"]
            else:
                cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wukong_gpu(report: dict[str, Any]) -> str:
    """Rates of large stacks; what FP8 saves."""
    lines = ["| large Wukong, forward and backward | TFLOP/s | of a matrix product's rate |", "|---|---|---|"]
    for row in report["large"]:
        for name, found in row.items():
            if isinstance(found, dict):
                lines.append(f"| {row['size']}: {name} | {found['tflop_per_s']:.0f} | {found['of_matmul']:.0%} |")
    lines += [
        "",
        "| activations saved | MB | error of the gradient | loss after a step | step |",
        "|---|---|---|---|---|",
    ]
    for name, found in report["fp8"][0].items():
        if isinstance(found, dict):
            lines.append(
                f"| {name} | {found['saved_mb']:.0f} | {found['gradient_error']:.1e} | "
                f"{found['loss_after_a_step']:.4f} | {found['step_ms']:.1f} ms |"
            )
    return "\n".join(lines) + "\n"
