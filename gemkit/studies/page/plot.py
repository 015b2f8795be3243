"""A plot as HTML and inline SVG: it takes any width, and its texts and lines keep their size.

Shapes are placed in percent, curves in a box that stretches; only the labels of points are placed twice, for wide
and for narrow screens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from gemkit.studies.page.axes import Axis
from gemkit.studies.page.labels import Label, place
from gemkit.studies.page.text import breakable

_WIDTHS = {"wide": (530.0, 700.0, 1000.0), "narrow": (250.0, 290.0, 400.0, 530.0)}
"""Pixels that the plot has on screens above and below page.css's breakpoint."""
_LONGEST_NAME = 28
"""Characters of the longest name that is written beside a point."""
_BOX = 1000


@dataclasses.dataclass(frozen=True)
class _Point:
    x: float
    y: float
    color: str
    filled: bool
    title: str
    names: tuple[str, ...]
    whisker: tuple[float, float] | None


class Plot:
    """Two axes and what is drawn over them, in the order of the calls; points and their labels come last.

    Args:
        x_title, y_title: What the axes show, with the unit; an empty one takes no room.
        x_hint, y_hint: Which direction is good, e.g. "↑ better".
        description: The text alternative: what one would say of the plot on the telephone.
        heights: Pixels on wide and on narrow screens.
    """

    def __init__(
        self,
        x: Axis,
        y: Axis,
        *,
        x_title: str,
        y_title: str,
        description: str,
        x_hint: str = "",
        y_hint: str = "",
        heights: tuple[int, int] = (380, 300),
    ) -> None:
        self.x, self.y = x, y
        self._x_texts, self._y_texts = (x_title, x_hint), (y_title, y_hint)
        self._description = description
        self._heights = heights
        self._curves: list[Markup] = []
        self._marks: list[Markup] = []
        self._lines: list[list[tuple[float, float]]] = []
        self._points: list[_Point] = []

    def band(self, points: Sequence[tuple[float, float, float]], *, color: str, faint: bool = False) -> None:
        """A translucent area between (x, low, high); a faint one says less."""
        edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
        area = Markup('<polygon class="band {}{}" points="{}"/>')
        self._curves.append(area.format(color, " faint" if faint else "", self._path(edge)))

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        color: str,
        dash: str = "",
        strong: bool = False,
        faint: bool = False,
    ) -> None:
        """A line through (x, y)."""
        line = Markup('<polyline class="curve {}{}{}" stroke-dasharray="{}" points="{}"/>')
        weight = (" strong" if strong else "", " faint" if faint else "")
        self._curves.append(line.format(color, *weight, dash or "none", self._path(points)))
        self._lines.append([(self.x.at(x), self.y.at(y)) for x, y in points])

    def point(
        self,
        x: float,
        y: float,
        *,
        color: str,
        title: str,
        names: tuple[str, ...] = (),
        filled: bool = True,
        whisker: tuple[float, float] | None = None,
    ) -> None:
        """A dot.

        Args:
            title: Shown when the pointer rests on it.
            names: What may be written beside it, the first that finds room; (name, number) lets a crowded plot
                fall back on numbers, which `key` explains.
            whisker: Ends of a thin vertical line through it.
        """
        self._points.append(_Point(x, y, color, filled, title, names, whisker))

    def span(self, x0: float, x1: float, y: float, text: str) -> None:
        """A double arrow from x0 to x1 with a text above: how far apart two curves are at one height."""
        low, high = sorted((self.x.at(x0), self.x.at(x1)))
        top = _percent(1 - self.y.at(y))
        self._marks.append(
            Markup(
                '<g class="span"><line x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
                '<svg x="{0}" y="{2}" overflow="visible"><path d="M7 -4L0 0L7 4"/></svg>'
                '<svg x="{1}" y="{2}" overflow="visible"><path d="M-7 -4L0 0L-7 4"/></svg>'
                '<svg x="{3}" y="{2}" overflow="visible"><text y="-8" text-anchor="middle">{4}</text></svg></g>'
            ).format(_percent(low), _percent(high), top, _percent((low + high) / 2), text)
        )

    def markup(self) -> Markup:
        """The plot, ready for a template."""
        ticks = Markup("").join(Markup('<span style="left:{}">{}</span>').format(at, text) for at, text in self._at_x())
        y_ticks = Markup("").join(
            Markup('<span style="top:{}">{}</span>').format(at, text) for at, text in self._at_y()
        )
        wide, narrow = self._heights
        y_width = max((len(text) for _, text in self.y.ticks), default=1)
        return Markup(
            '<div class="plot" style="--y-width:{y_width}ch;--wide:{wide}px;--narrow:{narrow}px">'
            "{y_title}"
            '<div class="y-ticks" aria-hidden="true">{y_ticks}</div>'
            '<div class="area" role="img" aria-label="{description}"><svg class="drawing">{grid}'
            '<svg viewBox="0 0 {box} {box}" preserveAspectRatio="none">{curves}</svg>'
            "{marks}{points}{labels}</svg></div>"
            '<div class="x-ticks" aria-hidden="true">{ticks}</div>'
            "{x_title}</div>"
        ).format(
            y_width=y_width,
            wide=wide,
            narrow=narrow,
            y_ticks=y_ticks,
            ticks=ticks,
            description=self._description,
            grid=self._grid(),
            box=_BOX,
            curves=Markup("").join(self._curves),
            marks=Markup("").join(self._marks),
            points=Markup("").join(self._dot(point) for point in self._points),
            labels=Markup("").join(self._labels(screen) for screen in _WIDTHS),
            x_title=_title("x-title", *self._x_texts),
            y_title=_title("y-title", *self._y_texts),
        )

    def key(self) -> Markup:
        """What the numbers in the plot stand for; empty if every point has its name beside it."""
        lists = []
        for screen in _WIDTHS:
            placed = zip(self._points, self._place(screen), strict=True)
            short = [p.names for p, label in placed if len(p.names) > 1 and not (label and label.text == p.names[0])]
            items = Markup("").join(
                Markup("<li><b>{}</b><span>{}</span></li>").format(names[-1], breakable(names[0]))
                for names in sorted(short, key=_by_number)
            )
            if items:
                lists.append(Markup('<ul class="key {}">{}</ul>').format(screen, items))
        return Markup("").join(lists)

    def _at_x(self) -> list[tuple[str, str]]:
        return [(_percent(self.x.at(value)), text) for value, text in self.x.ticks]

    def _at_y(self) -> list[tuple[str, str]]:
        return [(_percent(1 - self.y.at(value)), text) for value, text in self.y.ticks]

    def _path(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x.at(x) * _BOX:.1f},{(1 - self.y.at(y)) * _BOX:.1f}" for x, y in points)

    def _grid(self) -> Markup:
        lines = [Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(at) for at, _ in self._at_x()]
        lines += [
            Markup('<line class="grid" y1="{0}" y2="{0}" x1="0" x2="100%"/>').format(at) for at, _ in self._at_y()
        ]
        return Markup("").join(lines)

    def _dot(self, point: _Point) -> Markup:
        x, y = _percent(self.x.at(point.x)), _percent(1 - self.y.at(point.y))
        whisker = Markup("")
        if point.whisker:
            low, high = (_percent(1 - self.y.at(end)) for end in point.whisker)
            line = Markup('<line class="whisker {0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>')
            whisker = line.format(point.color, x, low, high)
        dot = Markup(
            '<svg x="{}" y="{}" overflow="visible"><circle class="{} {}" r="5"><title>{}</title></circle></svg>'
        )
        return whisker + dot.format(x, y, "filled" if point.filled else "hollow", point.color, point.title)

    def _place(self, screen: str) -> list[Label | None]:
        height = float(self._heights[list(_WIDTHS).index(screen)])
        at = [(self.x.at(point.x), self.y.at(point.y)) for point in self._points]
        whiskers = [
            [(x, self.y.at(end)) for end in p.whisker] for (x, _), p in zip(at, self._points, strict=True) if p.whisker
        ]
        names = [[name for name in p.names if len(name) <= _LONGEST_NAME] for p in self._points]
        return place(at, names, _WIDTHS[screen], height, [*self._lines, *whiskers])

    def _labels(self, screen: str) -> Markup:
        texts = []
        for point, label in zip(self._points, self._place(screen), strict=True):
            if label is None:
                continue
            texts.append(
                Markup(
                    '<svg x="{}" y="{}" overflow="visible">{}<text x="{}" y="{}" text-anchor="{}">{}</text></svg>'
                ).format(
                    _percent(self.x.at(point.x)),
                    _percent(1 - self.y.at(point.y)),
                    _leader(label),
                    label.dx,
                    label.dy,
                    label.anchor,
                    label.text,
                )
            )
        return Markup('<g class="labels {}">{}</g>').format(screen, Markup("").join(texts))


def _by_number(names: tuple[str, ...]) -> tuple[int, str]:
    return len(names[-1]), names[-1]


def _title(place: str, title: str, hint: str) -> Markup:
    return Markup('<p class="{}">{} <b>{}</b></p>').format(place, title, hint) if title else Markup("")


def _leader(label: Label) -> Markup:
    """A thin line from a point to its label, if that is not right beside it."""
    if not label.leader:
        return Markup("")
    x = {"start": label.dx - 2, "middle": label.dx, "end": label.dx + 2}[label.anchor]
    y = label.dy - (7 if label.dy > 0 else -7) * (label.anchor == "middle")
    reach = (x * x + y * y) ** 0.5
    return Markup('<line class="leader" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        6 * x / reach, 6 * y / reach, x, y
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3f}%"
