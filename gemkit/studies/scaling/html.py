"""A ladder's report as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path

from gemkit.runs.files import write_text
from gemkit.studies.answer import metric_name
from gemkit.studies.html import environment_facts
from gemkit.studies.page.render import render
from gemkit.studies.scaling import words as w
from gemkit.studies.scaling.figure import ladder_plot
from gemkit.studies.scaling.result import ScaleResult


def write_html(result: ScaleResult, path: Path) -> None:
    """Writes the report of a ladder; it opens from disk and from a mail, and loads nothing.

    Raises:
        GemkitError: It cannot be written.
    """
    write_text(path, to_html(result))


def to_html(result: ScaleResult) -> str:
    """The report as text."""
    plot = ladder_plot(result)
    return render(
        "scale.html.j2",
        result=result,
        w=w,
        answer=w.answer(result),
        plot=plot and plot[0].markup(),
        legend=plot and plot[1],
        metric=metric_name(result.metric),
        cost=w.COST_NAMES[result.cost],
        decimals=w.decimals_of(result),
        environment=environment_facts(result.environment),
        environment_text=json.dumps(result.environment, indent=2, ensure_ascii=False, default=str),
    )
