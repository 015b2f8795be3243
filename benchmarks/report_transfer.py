"""The results page's tables of knowledge transfer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from gemkit.transfer.graph.report import Interval, markdown

AGES = [
    *((f"from{age}_suite", f"from{age}_distilled") for age in ("18", "25", "35")),
    ("from25_codes", "from25_distilled"),
    ("from25_distilled_codes", "from25_codes"),
    ("from25_suite", "from25_distilled_codes"),
]
VERTICALS = [("hierarchical", "direct"), ("both", "direct"), ("both", "hierarchical")]
"""Pairs of a graph's nodes that are compared."""
CYCLE_PAIRS = {
    "naive_waits": "naive",
    "delayed_feedback": "naive",
    "delayed_feedback_waits": "delayed_feedback",
    "taught": "delayed_feedback_waits",
}


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
            shown = _shown(difference) if difference else "-"
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


def graph(report: Any, compare: Sequence[tuple[str, str]]) -> str:
    """A graph's own tables, and paired differences in NE between nodes with one test.

    Args:
        compare: Pairs of nodes: the first one's NE minus the second one's.
    """
    lines = [markdown(report), "| | difference in NE | gain, of the second's |", "|---|---|---|"]
    for first, second in compare:
        a, b = (report["nodes"][name] for name in (first, second))
        values = [x - y for x, y in zip(a["by_seed"]["ne"], b["by_seed"]["ne"], strict=True)]
        ratio = f"{a['gain']['mean'] / b['gain']['mean']:.1f}x" if b["gain"]["mean"] > 0 else "-"
        lines.append(f"| {first} minus {second} | {Interval.of(values)} | {ratio} |")
    return "\n".join(lines) + "\n"


def by_lag(report: Any) -> str:
    """Differences from the student alone, a column for each age of the teacher, and calibrations."""
    lags = report["lags"]
    lines = [
        f"{len(report['seeds'])} seeds; NE minus that of the student alone, calibration below it",
        "",
        f"| | {_ages(lags)} |",
        "|---" * (len(lags) + 1) + "|",
    ]
    for name in lags[0]["variants"]:
        if name == "teacher":
            continue
        cells = []
        for one in lags:
            test = one["variants"][name]["test"]
            difference = test["ne"].get("difference_from_alone")
            shown = _shown(difference) if difference else f"NE {test['ne']['mean']:.4f} ± {test['ne']['sd']:.4f}"
            cells.append(f"{shown}<br>{test['calibration']['mean']:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def against(report: Any, pairs: Sequence[tuple[str, str]]) -> str:
    """Paired differences in NE between two variants, a column for each age of the teacher."""
    lags = report["lags"]
    lines = [
        f"| first minus second, NE | {_ages(lags)} |",
        "|---" * (len(lags) + 1) + "|",
    ]
    for first, second in pairs:
        cells = []
        for one in lags:
            a, b = (one["variants"][name]["test"]["ne"]["by_seed"] for name in (first, second))
            cells.append(str(Interval.of([x - y for x, y in zip(a, b, strict=True)])))
        lines.append(f"| {first}, {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def codes(report: Any) -> str:
    """Widths and bits against the student alone, and against each other."""
    pairs = [
        ("32 numbers of 8 bits", "32 numbers of 32 bits"),
        ("32 numbers of 4 bits", "32 numbers of 32 bits"),
        ("8 numbers of 8 bits", "32 numbers of 8 bits"),
        ("128 numbers of 8 bits", "32 numbers of 8 bits"),
    ]
    return transfer(report, with_cost=False) + "\n" + against(report, pairs)


def refreshed(report: Any) -> str:
    """Students that read codes of one teacher, or of another one from their first test day on."""
    lines = [
        f"{len(report['seeds'])} seeds; differences are from one teacher, codes read in the same way",
        "",
        "| | NE | difference | AUC | calibration |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["variants"].items():
        difference = row["ne"].get("difference")
        shown = _shown(difference) if difference else "-"
        lines.append(
            f"| {name} | {row['ne']['mean']:.4f} ± {row['ne']['sd']:.4f} | {shown} | {row['auc']['mean']:.4f} "
            f"| {row['calibration']['mean']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def staleness(report: Any) -> str:
    """Each strategy by the teacher's age, and what the adapter is worth against distillation."""
    pairs = [
        ("adapter to the serving head", "distill"),
        ("adapter to the serving head, gated", "distill"),
        ("adapter to an auxiliary head", "auxiliary_head"),
        ("auxiliary_head", "distill"),
    ]
    return by_lag(report) + "\n" + against(report, pairs)


def cycle(report: Any) -> str:
    """Means over days of every model of a cycle, and paired differences over seeds from another one."""
    models = report["models"]
    lines = [
        f"`{report['task']}`, {report['seeds']} seeds, means over days; NE is relative to the label rate of the days "
        "that a model was last trained on",
        "",
        "| | NE | calibration | difference in NE | in calibration |",
        "|---|---|---|---|---|",
    ]
    for name, found in models.items():
        cells = ["-", "-"]
        if other := CYCLE_PAIRS.get(name):
            cells = []
            for metric in ("ne", "calibration"):
                one, two = (_means_by_seed(models[model]["days"], metric) for model in (name, other))
                cells.append(str(Interval.of([x - y for x, y in zip(one, two, strict=True)])))
            cells[0] += f" from {other}"
        lines.append(f"| {name} | {found['ne']:.4f} | {found['calibration']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _means_by_seed(days: dict[str, Any], metric: str) -> list[float]:
    rows = [day["by_seed"][metric] for day in days.values()]
    return [mean(values) for values in zip(*rows, strict=True)]


def _shown(difference: dict[str, float]) -> str:
    return f"{difference['mean']:+.4f} ± {difference['ci95']:.4f}"


def _ages(lags: Sequence[Any]) -> str:
    return " | ".join(f"{one['lag_days']} days" for one in lags)
