"""How series are told apart in plots: a colour, a dash pattern, and a legend that names them."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from gemkit.studies.page.text import breakable

NUM_COLORS = 8
"""Colours that are told apart by people who see fewer of them, too; `.c1` to `.c8` in page.css."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4")


def series_color(index: int) -> str:
    """The colour of the series of that index. Others: "ink", "soft", "better", "worse"."""
    return f"c{index % NUM_COLORS + 1}"


def series_dash(index: int) -> str:
    """A dash pattern, so that series can be told apart without colours, in print for instance."""
    return _DASHES[index % len(_DASHES)]


def legend(entries: Iterable[tuple[str, str, str]]) -> Markup:
    """A list of (name, color, dash)."""
    item = Markup(
        '<li><svg class="{}" width="28" height="10" aria-hidden="true">'
        '<line class="curve" x1="0" x2="28" y1="5" y2="5" stroke-dasharray="{}"/></svg><span>{}</span></li>'
    )
    items = Markup("").join(item.format(color, dash or "none", breakable(name)) for name, color, dash in entries)
    return Markup('<ul class="legend">{}</ul>').format(items)
