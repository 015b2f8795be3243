"""The results page's tables of memory and of the embedding step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def embedding_speed(report: Any) -> str:
    """Time of an embedding step by rows and width."""
    header = (
        "rows in all x width",
        "raw TBE, ms",
        "`torch`, the default: of raw TBE",
        "`fbgemm`: of raw TBE",
        "unpooled TBE: of raw TBE",
        "EmbeddingBag + SparseAdam: of `torch`",
        "of `fbgemm`",
        "`torch` - `fbgemm`, largest",
    )
    rows = []
    for case, found in report["cases"].items():
        sides = found["sides"]
        size, width = case.split(" x ")
        unpooled = sides.get("tbe unpooled")
        rows.append(
            (
                f"{int(size):,} x {width}",
                f"{sides['tbe']['median_ms']:.0f}",
                f"{sides['torch']['of_tbe']:.2f}",
                f"{sides['fbgemm']['of_tbe']:.2f}",
                f"{unpooled['of_tbe']:.2f}" if unpooled else "-",
                *(_times(sides[name]["embedding_bag_over_it"]) for name in ("torch", "fbgemm")),
                f"{found['largest_difference']:.0e}",
            )
        )
    return _table(header, rows)


def freed_memory(report: Any) -> str:
    """Training with freed memory kept and given back."""
    header = (
        "",
        "examples/s",
        "kept / given back, by round",
        "processor time, s",
        "the kernel's, s",
        "page faults",
        "peak memory, MB",
    )
    rows = []
    for experiment, found in report["experiments"].items():
        for way, facts in found["ways"].items():
            ratios = sorted(found["kept_over_given_back"]["examples_per_s"])
            rows.append(
                (
                    f"{experiment}: {way}",
                    f"{facts['examples_per_s']:,.0f}",
                    f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if way == "kept" else "-",
                    f"{facts['cpu_s']:.1f}",
                    f"{facts['kernel_s']:.1f}",
                    f"{facts['page_faults']:,.0f}",
                    f"{facts['peak_mb']:,.0f}",
                )
            )
    return _table(header, rows)


def memory(report: Any) -> str:
    """Peak memory of a training step by what is kept of its activations."""
    header = ("", "peak, MB", "of all kept", "counted, MB", "of all kept", "recomputed", "time of a step", "losses")
    rows: list[Sequence[str]] = []
    for size, ways in report["sizes"].items():
        whole = ways["all kept"]
        for way, found in ways.items():
            counted = found["predicted_mb"]
            rows.append(
                (
                    f"{size}: {way}",
                    f"{found['peak_mb']:,.0f}",
                    f"{found['peak_mb'] / whole['peak_mb']:.2f}",
                    "-" if counted is None else f"{counted:,.0f}",
                    "-" if counted is None else f"{counted / whole['predicted_mb']:.2f}",
                    _blocks(way, found["recomputed"]),
                    f"{found['step_cpu_s'] / whole['step_cpu_s']:.2f}",
                    "the same bits" if found["same_losses"] else "others",
                )
            )
    return _table(header, rows)


def _blocks(way: str, recomputed: Sequence[int]) -> str:
    if way == "all recomputed":
        return "all"
    return ", ".join(map(str, recomputed)) if recomputed else "-"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])
