"""A graph as a picture: teachers above, students below."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 74, 40, 96, 20


def draw(facts: dict[str, Any]) -> str:
    """An SVG of the nodes with their NE, and of the edges with their transfer ratios."""
    levels = levels_of(facts)
    rows: dict[int, list[str]] = {}
    for name, level in levels.items():
        rows.setdefault(level, []).append(name)
    widest = max(len(row) for row in rows.values())
    total_width = 2 * MARGIN + widest * WIDTH + (widest - 1) * GAP_X
    total_height = 2 * MARGIN + len(rows) * HEIGHT + (len(rows) - 1) * GAP_Y
    places = {}
    for level, row in rows.items():
        own = len(row) * WIDTH + (len(row) - 1) * GAP_X
        for i, name in enumerate(row):
            places[name] = (total_width - own) / 2 + i * (WIDTH + GAP_X), MARGIN + level * (HEIGHT + GAP_Y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}" '
        f'width="{total_width:.0f}" height="{total_height:.0f}" font-family="sans-serif" font-size="13" role="img">',
        "<title>Who teaches whom, with NE and transfer ratios</title>",
        f'<rect width="{total_width:.0f}" height="{total_height:.0f}" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
    ]
    for edge in facts["edges"]:
        (x1, y1), (x2, y2) = places[edge["teacher"]], places[edge["student"]]
        start, end = (x1 + WIDTH / 2, y1 + HEIGHT), (x2 + WIDTH / 2, y2)
        ratio = edge["transfer_ratio"]
        text = "TR -" if ratio is None else f"TR {ratio['mean']:.2f}"
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        parts += [
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1] - 2:.1f}" stroke="#555" '
            'marker-end="url(#tip)"/>',
            _text(text, *middle, fill="#111", halo=True),
        ]
    for name, node in facts["nodes"].items():
        x, y = places[name]
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fa" stroke="#35608f"/>'
        )
        second = f"NE {node['ne']:.4f}" + (f" (alone {node['alone']['ne']:.4f})" if "alone" in node else "")
        rows_ = (name, second, f"{node['ms_per_1000']:.2f} ms / 1,000 examples")
        for i, text in enumerate(rows_):
            parts.append(_text(text, x + WIDTH / 2, y + 22 + 20 * i, weight="bold" if i == 0 else "normal"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def levels_of(facts: dict[str, Any]) -> dict[str, int]:
    """How many teachers stand above each node, along the longest way."""
    levels = dict.fromkeys(facts["nodes"], 0)
    for _ in levels:
        for edge in facts["edges"]:
            levels[edge["student"]] = max(levels[edge["student"]], levels[edge["teacher"]] + 1)
    return levels


def _text(text: str, x: float, y: float, fill: str = "#111", weight: str = "normal", halo: bool = False) -> str:
    style = ' stroke="#fff" stroke-width="4" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="{fill}" font-weight="{weight}"{style}>'
        f"{escape(text)}</text>"
    )
