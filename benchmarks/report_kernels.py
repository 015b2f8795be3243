"""Tables of docs/results.md about kernels; `report.py` fills them in."""

from __future__ import annotations

from typing import Any

PLAIN = "triton, no rotary"
OTHERS = ("eager", "compile", "varlen", "flex", "padded")


def kernels(report: dict[str, Any]) -> str:
    """Times of every case, shares of the rate of a large copy, and how much longer the same takes by other means."""
    lines = [
        "| operation | case | forward | of a copy's rate | backward | of a copy's rate | eager | `torch.compile` "
        "| varlen flash | FlexAttention | padded SDPA |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        found = case["candidates"]
        for name in ("triton", PLAIN):
            if name in found:
                row = found[name]
                cells = [f"`{case['op']}`", case["case"] + (", no rotary positions" if name == PLAIN else "")]
                for part in ("forward", "backward"):
                    timed = f"{part}_ms" in row
                    cells += [f"{row[f'{part}_ms']:.2f} ms", f"{row[f'{part}_of_copy']:.0%}"] if timed else ["", ""]
                # varlen, flex and padded have no rotary positions; eager and compile have them.
                alike = OTHERS[2:] if name == PLAIN else OTHERS[:2]
                cells += [_times(found[other], row) if other in alike and other in found else "" for other in OTHERS]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(other: dict[str, Any], ours: dict[str, Any]) -> str:
    part = "step_ms" if "step_ms" in ours else "forward_ms"
    return f"{other[part] / ours[part]:.3g}x" if part in other else "failed"


def wukong_gpu(report: dict[str, Any]) -> str:
    """Rates of large stacks; launches of a small one; what FP8 saves."""
    lines = ["| large Wukong, forward and backward | TFLOP/s | of a matrix product's rate |", "|---|---|---|"]
    for row in report["large"]:
        for name, found in row.items():
            if isinstance(found, dict):
                lines.append(f"| {row['size']}: {name} | {found['tflop_per_s']:.0f} | {found['of_matmul']:.0%} |")
    lines += [
        "",
        "| small Wukong, forward and backward | as it comes | `reduce-overhead` | a CUDA graph |",
        "|---|---|---|---|",
    ]
    for row in report["launches"]:
        for name, found in row.items():
            if isinstance(found, dict):
                cells = [f"{found['eager_ms']:.2f} ms"]
                cells += [f"{found[f'{k}_ms']:.2f} ms, {found[f'{k}_gain']:.1f}x faster" for k in ("compile", "graph")]
                lines.append(f"| {row['size']}: fm_block in {name} | {' | '.join(cells)} |")
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
