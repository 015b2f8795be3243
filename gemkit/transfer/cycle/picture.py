"""NE and calibration of every model, day by day, as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

from gemkit.runs.svg import svg_figure

PANELS = {"ne": "NE (lower is better)", "calibration": "calibration (1 is right)"}


def draw(facts: dict[str, Any], path: Path) -> None:
    """An SVG with a panel for each metric: a line for each model, with its range over seeds.

    Args:
        facts: What `report` gives.

    Raises:
        GemkitError: matplotlib is missing, or the file cannot be written.
    """
    with svg_figure(path, 7.2, 6.0) as figure:
        for number, (metric, title) in enumerate(PANELS.items()):
            axes = figure.add_subplot(len(PANELS), 1, number + 1)
            for i, (model, found) in enumerate(facts["models"].items()):
                days = [int(day) for day in found["days"]]
                seeds = [_known(day["by_seed"][metric]) for day in found["days"].values()]
                axes.plot(days, [mean(s) if s else math.nan for s in seeds], color=f"C{i}", marker="o", label=model)
                low, high = ([pick(s) if s else math.nan for s in seeds] for pick in (min, max))
                axes.fill_between(days, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
            if metric == "calibration":
                axes.axhline(1, color="#555", linewidth=0.8)
            axes.set_ylabel(title)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
        figure.axes[0].set_title(f"{facts['task']}: each day is predicted before it is trained on", fontsize=10)
        figure.axes[0].legend(frameon=False)
        figure.axes[-1].set_xlabel("day")


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]
