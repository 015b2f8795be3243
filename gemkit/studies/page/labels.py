"""Names beside the points of a plot, so that none lies over another or over a point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_CHARACTER_PX, _LINE_PX = 6.9, 15.0
"""Of a 12-pixel sans serif, on the safe side."""
_POINT_PX = 7.0
"""Half the side of the square that a point keeps free."""
_MOST_RINGS = 4


class Label(NamedTuple):
    """A text at (dx, dy) pixels from its point, and whether a line must say whose it is.

    Attributes:
        anchor: "start", "middle" or "end": which part of the text lies at dx.
    """

    text: str
    dx: float
    dy: float
    anchor: str
    leader: bool


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place(
    points: Sequence[tuple[float, float]],
    texts: Sequence[Sequence[str]],
    widths: Sequence[float],
    height: float,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> list[Label | None]:
    """A label for each point, earlier points first; None where none fits.

    Args:
        points: (x, y) as shares of the plot, from its lower left.
        texts: For each point what may be written, best first.
        widths: Widths of the plot, in pixels, at which nothing may overlap: it stretches, texts do not.
        height: Its height in pixels.
        lines: Each through (x, y), shares as well; labels lie on them only if there is no room elsewhere.
    """
    sizes = [(width, height) for width in widths]
    taken = [[_point_box(x * width, (1 - y) * height) for x, y in points] for width, height in sizes]
    crossed = [[box for line in lines for box in _line_boxes(line, *size)] for size in sizes]
    labels: list[Label | None] = []
    for (x, y), choices in zip(points, texts, strict=True):
        at = [(x * width, (1 - y) * height) for width, height in sizes]
        room = [label for label in _candidates(choices) if _is_free(label, at, sizes, taken)]
        label = next((label for label in room if _is_free(label, at, sizes, crossed)), room[0] if room else None)
        if label is not None:
            for here, boxes in zip(at, taken, strict=True):
                boxes.append(_text_box(label, *here))
        labels.append(label)
    return labels


def _is_free(
    label: Label, at: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[list[_Box]]
) -> bool:
    """Whether a label lies within the plot and on nothing, at every size of the plot."""
    for here, (width, height), boxes in zip(at, sizes, taken, strict=True):
        box = _text_box(label, *here)
        inside = box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= height
        if not inside or any(box.meets(other) for other in boxes):
            return False
    return True


def _candidates(choices: Sequence[str]) -> Iterator[Label]:
    for text in choices:
        for ring in range(1, _MOST_RINGS + 1):
            far, up = 10.0 * ring, 14.0 * ring
            sides = [(far, 0.0, "start"), (-far, 0.0, "end")] if ring == 1 else []
            sides += [(8.0, -up, "start"), (8.0, up, "start"), (-8.0, -up, "end"), (-8.0, up, "end")]
            sides += [(0.0, -up - 2, "middle"), (0.0, up + 2, "middle")]
            sides += [] if ring == 1 else [(far, -up / 2, "start"), (far, up / 2, "start")]
            sides += [] if ring == 1 else [(-far, -up / 2, "end"), (-far, up / 2, "end")]
            yield from (Label(text, dx, dy, anchor, ring > 1) for dx, dy, anchor in sides)


def _point_box(x: float, y: float) -> _Box:
    return _Box(x - _POINT_PX, y - _POINT_PX, x + _POINT_PX, y + _POINT_PX)


def _line_boxes(line: Sequence[tuple[float, float]], width: float, height: float) -> Iterator[_Box]:
    """Boxes that cover a line; a slanted piece of it is cut into short ones, which small boxes cover well."""
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        across, up = (x1 - x0) * width, (y1 - y0) * height
        num = 1 + int(min(abs(across), abs(up)) / _LINE_PX * 3)
        for i in range(num):
            ends = [(x0 * width + across * k / num, (1 - y0) * height - up * k / num) for k in (i, i + 1)]
            (a, b), (c, d) = ends
            yield _Box(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1)


def _text_box(label: Label, x: float, y: float) -> _Box:
    width = _CHARACTER_PX * len(label.text)
    left = x + label.dx - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return _Box(left, y + label.dy - _LINE_PX / 2, left + width, y + label.dy + _LINE_PX / 2)
