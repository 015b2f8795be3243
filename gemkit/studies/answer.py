"""What a study says, in words: the verdict on one variant, and one sentence on all."""

from __future__ import annotations

from gemkit.studies.page.text import decimals_for, signed
from gemkit.studies.result import Difference, StudyResult, VariantResult

_METRICS = {
    "auc": "AUC",
    "auc_histogram": "AUC (histogram)",
    "pr_auc": "PR-AUC",
    "gauc_impressions": "gAUC (by impressions)",
    "gauc_positives": "gAUC (by positives)",
    "gauc_unweighted": "gAUC (unweighted)",
    "ne": "NE",
    "ece": "ECE",
}
_MOST_NAMED = 2


def metric_name(metric: str) -> str:
    """What people call it."""
    return _METRICS.get(metric, metric)


def seeds(number: int) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{number} seed{'' if number == 1 else 's'}"


def verdict(difference: Difference) -> str:
    """``better``, ``worse`` or ``not resolved at 5 seeds``."""
    known = difference.verdict in ("better", "worse")
    return difference.verdict if known else f"{difference.verdict} at {seeds(difference.num_seeds)}"


def remedy(difference: Difference) -> str:
    """What would resolve a difference that is not resolved; empty if that cannot be said."""
    if difference.verdict in ("better", "worse"):
        return ""
    if difference.seeds_needed is not None:
        return f"about {seeds(difference.seeds_needed)} would resolve it"
    if difference.examples_part is not None and difference.examples_part >= abs(difference.mean):
        return "the test split is too small to tell"
    return ""


def answer(result: StudyResult) -> str:
    """What the study found on its main metric, in a few sentences."""
    metric = metric_name(result.metric)
    others = result.variants[1:]
    found = [(v, d) for v in others if (d := v.differences.get(result.task, {}).get(result.metric)) is not None]
    missing = len(others) - len(found)
    if not others:
        return "Only the base was run: there is nothing to compare it with."
    if not found:
        return f"There is no {metric} of the base and of a variant for the same seed: nothing can be compared."
    parts = []
    resolved = [d for _, d in found if d.verdict in ("better", "worse")]
    if max(d.num_seeds for _, d in found) == 1:
        parts.append(f"One seed cannot tell a difference in {metric} from chance: nothing is resolved.")
    elif not resolved:
        none_of = "The one variant does not differ" if len(found) == 1 else f"None of {len(found)} variants differs"
        parts.append(f"{none_of} from the base beyond chance in {metric} at {seeds(len(result.seeds))}.")
    else:
        verb = "differs" if len(resolved) == 1 else "differ"
        noun = "variant" if len(found) == 1 else "variants"
        named = "; ".join(text for word in ("better", "worse") if (text := _named(found, word)))
        parts.append(f"{len(resolved)} of {len(found)} {noun} {verb} from the base beyond chance in {metric}: {named}.")
    if missing:
        parts.append(f"{missing} of {len(others)} could not be compared.")
    return " ".join(parts)


def _named(found: list[tuple[VariantResult, Difference]], word: str) -> str:
    """The variants of one verdict by name, the largest differences first."""
    chosen = sorted(((v, d) for v, d in found if d.verdict == word), key=lambda pair: -abs(pair[1].mean))
    half_widths = [(d.high - d.low) / 2 for _, d in chosen if d.high is not None and d.low is not None]
    decimals = decimals_for([max(half_widths, default=None)])
    names = [f"{v.name} ({signed(d.mean, decimals)})" for v, d in chosen[:_MOST_NAMED]]
    if len(chosen) > _MOST_NAMED:
        names.append(f"{len(chosen) - _MOST_NAMED} more")
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
    return f"{listed} {'is' if len(chosen) == 1 else 'are'} {word}" if chosen else ""
