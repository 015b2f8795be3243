"""The README's table: one finding of each kind, from the files that docs/results.md is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Read = Callable[[str], Any]
"""File of benchmarks/results/, without its ending -> what is in it."""


def findings(read: Read) -> list[Sequence[str]]:
    """Rows: question, what was found, over what."""
    rows = (_histories, _interactions, _long, _flows, _transfer, _kills, _kernel)
    return [row(read) for row in rows]


def _histories(read: Read) -> Sequence[str]:
    report = read("movielens1m_histories")
    found = report["variants"]["sequence=none"]["test"]["like"]["ne"]["difference_from_first"]
    return (
        _link("What is a history worth?", "does-history-help"),
        f"NE {found['mean']:.3f} ± {found['ci95']:.3f} higher without",
        f"MovieLens-1M by time, {len(report['seeds'])} seeds",
    )


def _interactions(read: Read) -> Sequence[str]:
    report = read("movielens1m_autoint_interactions/report")
    base, *others = report["variants"]
    auc = base["scores"][report["task"]]["auc"]
    verdicts = [v["differences"][report["task"]]["auc"]["verdict"] for v in others]
    return (
        _link("Which interaction module?", "the-autoint-split"),
        f"Wukong: AUC {auc['mean']:.4f} ± {auc['sd']:.4f}; of {len(others)} others {verdicts.count('worse')} are "
        f"worse, {verdicts.count('better')} better, the rest not resolved",
        f"MovieLens-1M, AutoInt's split, {len(report['seeds'])} seeds",
    )


def _long(read: Read) -> Sequence[str]:
    report = read("long_history")
    pyramid, full = (report["variants"][name] for name in ("pyramid", "full attention"))
    seeds, cost = len(report["seeds"]), full["flops_per_example"]["mean"] / pyramid["flops_per_example"]["mean"]
    return (
        _link("Two thousand events?", "two-thousand-events"),
        f"the pyramid finds the planted signal with {pyramid['found']} of {seeds} seeds, full attention with "
        f"{full['found']}, at {cost:.1f} times the FLOPs",
        f"adsworld, {seeds} seeds",
    )


def _flows(read: Read) -> Sequence[str]:
    report = read("adsworld_flows/report")
    of = {v["name"].removeprefix("cross.flow="): v["scores"][report["task"]]["ne"]["mean"] for v in report["variants"]}
    of["int"] = of.pop("base")
    order = sorted((name for name in of if "=" not in name), key=lambda name: of[name])
    return (
        _link("Who should inform whom?", "flows-where-events-and-attributes-interact"),
        "NE " + ", ".join(f"`{name}` {of[name]:.3f}" for name in order) + ", with `cross.gating=gate`",
        f"adsworld, {len(report['seeds'])} seeds",
    )


def _transfer(read: Read) -> Sequence[str]:
    report = read("movielens1m_ages/report")
    nodes = report["nodes"]
    ratios = [
        nodes[name]["gain"]["mean"] / nodes[name.replace("_suite", "_distilled")]["gain"]["mean"]
        for name in nodes
        if name.endswith("_suite")
    ]
    cost = nodes["gem"]["flops_per_example"] / nodes["from25_suite"]["flops_per_example"]
    return (
        _link("What does a GEM teach?", "the-same-on-movielens-1m-by-age-group"),
        f"{min(ratios):.1f} to {max(ratios):.1f} times what plain distillation does, "
        f"to students of a {cost:.0f}th of its FLOPs",
        f"MovieLens-1M by time, {len(ratios)} age groups, {report['seeds']} seeds",
    )


def _kills(read: Read) -> Sequence[str]:
    report = read("parallel_kills")
    same = "the same bits" if report["same_weights"] else "other bits"
    return (
        _link("A process is killed?", "several-processes"),
        f"killed {len(report['kills'])} times at random moments, the run ends with {same}",
        f"`hsdp` on {report['processes']} processes",
    )


def _kernel(read: Read) -> Sequence[str]:
    report = read("kernels_h100")
    case = next(c for c in report["cases"] if (c["op"], c["case"]) == ("chunk_attention", "chunks of 64"))
    # The others have no rotary positions.
    ms = {name: case["candidates"][name]["step_ms"] for name in ("triton, no rotary", "varlen", "padded")}
    ours = ms["triton, no rotary"]
    return (
        _link("How fast is attention in chunks?", "kernels-on-a-gpu"),
        f"{ms['varlen'] / ours:.1f} times as fast as variable-length FlashAttention, "
        f"{ms['padded'] / ours:.0f} times as padded attention, forward and backward, none with rotary positions",
        report["hardware"]["gpu"],
    )


def _link(question: str, section: str) -> str:
    return f"[{question}](docs/results.md#{section})"
