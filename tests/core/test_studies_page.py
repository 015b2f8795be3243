"""The pieces of reports: numbers, axes, labels, plots, colours, and a page made of them."""

from __future__ import annotations

import itertools
import math
import random
import re
from pathlib import Path

import pytest
from html_page import HtmlPage
from markupsafe import Markup

import gemkit.studies.page
from gemkit.studies.page.axes import linear, logarithmic
from gemkit.studies.page.labels import Label, place
from gemkit.studies.page.plot import Plot
from gemkit.studies.page.series import NUM_COLORS, legend, series_color, series_dash
from gemkit.studies.page.text import breakable, decimals_for, fixed, percent, si, signed

CSS = (Path(gemkit.studies.page.__file__).parent / "templates/page.css").read_text(encoding="utf-8")
# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fixed(0.79504, 4), "0.7950"),
        (fixed(-0.00123, 4), "\u22120.0012"),
        (fixed(12345.6, 0), "12,346"),
        (fixed(-0.00001, 4), "0.0000"),
        (fixed(None, 4), "\u2013"),
        (fixed(math.nan, 4), "\u2013"),
        (signed(0.00123, 4), "+0.0012"),
        (signed(-0.00123, 4), "\u22120.0012"),
        (signed(0.00001, 4), "0.0000"),
        (signed(None, 4), "\u2013"),
        (percent(0.0026), "+0.26\u202f%"),
        (percent(None), "\u2013"),
        (si(950), "950"),
        (si(1_234_567), "1.23\u202fM"),
        (si(999_999), "1\u202fM"),
        (si(2.5e12), "2.5\u202fT"),
        (si(-1500), "\u22121.5\u202fk"),
        (si(0.0125), "0.0125"),
        (si(0), "0"),
        (si(None), "\u2013"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected


def test_decimals_show_the_smallest_width_with_two_digits() -> None:
    assert decimals_for([0.00134, 0.02]) == 4
    assert decimals_for([0.00083, None, 0.0]) == 5
    assert decimals_for([1e-9]) == 6
    assert decimals_for([]) == decimals_for([3.0]) == 4


def test_words_break_after_signs_but_numbers_stay_whole() -> None:
    assert breakable("interaction.rank=64,cross=attentive") == "interaction.<wbr>rank=64,<wbr>cross=<wbr>attentive"
    assert breakable("+0.0027 of 73,902") == "+0.0027 of 73,902"
    assert breakable("<b>") == "&lt;b&gt;"


# --- axes ---------------------------------------------------------------------------------------------------


def test_a_linear_axis_has_round_ticks_within_its_limits() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scale = 10 ** rng.uniform(-6, 9)
        low = rng.uniform(-scale, scale)
        axis = linear([low, low + rng.uniform(0, scale)], num_ticks=5)
        values = [value for value, _ in axis.ticks]
        assert 2 <= len(values) <= 5
        assert all(axis.low <= value <= axis.high for value in values)
        assert len({text for _, text in axis.ticks}) == len(values)
        step = values[1] - values[0]
        assert f"{step:e}"[0] in "125" or f"{step * 1.0001:e}"[0] in "125"


def test_a_logarithmic_axis_too() -> None:
    rng = random.Random(0)
    for _ in range(300):
        low = 10 ** rng.uniform(-3, 12)
        axis = logarithmic([low, low * 10 ** rng.uniform(0.05, 9)], num_ticks=6)
        values = [value for value, _ in axis.ticks]
        assert 2 <= len(values) <= 6
        assert all(axis.low <= value <= axis.high for value in values)
        assert len({text for _, text in axis.ticks}) == len(values)


def test_where_a_value_lies() -> None:
    assert linear([0, 10], margin=0).at(2.5) == 0.25
    axis = logarithmic([1, 100], margin=0)
    assert axis.at(10) == pytest.approx(0.5)
    assert [text for _, text in logarithmic([2e5, 2e7]).ticks] == [
        f"{text}\u202f{unit}" for text, unit in (("300", "k"), ("1", "M"), ("3", "M"), ("10", "M"))
    ]


def test_axes_of_one_value_and_of_none() -> None:
    for axis in (linear([0.5, 0.5]), linear([0.0]), linear([]), logarithmic([3.0]), logarithmic([])):
        assert axis.low < axis.high and axis.ticks


# --- labels -------------------------------------------------------------------------------------------------


def box(label: Label, x: float, y: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a 12-pixel text, a little less generous than the code."""
    width = 6.5 * len(label.text)
    left = x + label.dx - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
    return left, y + label.dy - 7, left + width, y + label.dy + 7


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("num", [2, 8, 30])
def test_labels_overlap_neither_each_other_nor_points_at_any_width(num: int) -> None:
    widths, height = (250.0, 400.0, 600.0), 300.0
    for seed in range(8):
        rng = random.Random(seed)
        points = [(rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95)) for _ in range(num)]
        labels = place(points, [(f"interaction=number{i}", str(i)) for i in range(num)], widths, height)
        assert sum(label is not None for label in labels) >= 0.9 * num
        for width in widths:
            at = [(x * width, (1 - y) * height) for x, y in points]
            boxes = [box(label, *here) for label, here in zip(labels, at, strict=True) if label]
            assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
            dots = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
            assert not any(overlap(a, b) for a in boxes for b in dots)
            assert all(left >= 0 and right <= width and top >= 0 for left, top, right, _ in boxes)


def test_a_name_gives_way_to_a_number_and_a_line_is_avoided() -> None:
    crowd = [(0.5 + 0.01 * i, 0.5) for i in range(6)]
    labels = place(crowd, [("a name that is long", str(i)) for i in range(6)], [300.0], 60.0)
    assert any(label and label.text.isdigit() for label in labels)
    (free,) = place([(0.5, 0.5)], [("name",)], [300.0], 300.0)
    (beside,) = place([(0.5, 0.5)], [("name",)], [300.0], 300.0, lines=[[(0.5, 0.5), (1.0, 0.5)]])
    assert free and beside and free.dy == 0 < free.dx and (beside.dy != 0 or beside.dx < 0)


# --- plots --------------------------------------------------------------------------------------------------


def a_plot() -> Plot:
    """As the report of a ladder of sizes has it: fitted curves with bands, points, how far apart they are."""
    x, y = logarithmic([1e5, 1e8]), linear([0.75, 0.85])
    plot = Plot(x, y, x_title="FLOPs per example", y_title="NE", y_hint="↓ better", description='a "ladder" <of sizes>')
    grid = [x.low * (x.high / x.low) ** (i / 20) for i in range(21)]
    for i, name in enumerate(("wukong", "dlrm")):
        fit = [(f, 0.7 + (0.4 + 0.05 * i) * f**-0.1) for f in grid]
        plot.band([(f, v - 0.004, v + 0.004) for f, v in fit], color=series_color(i))
        plot.line(fit, color=series_color(i), dash=series_dash(i))
        for size, f in (("S", 1e6), ("M", 1e7)):
            plot.point(f, 0.8, color=series_color(i), names=(size,), title=f"{name} <{size}>", whisker=(0.79, 0.81))
    plot.span(1e6, 3e6, 0.82, "3x <fewer>")
    return plot


def test_a_plot_is_sound_and_has_everything() -> None:
    text = a_plot().markup()
    page = HtmlPage(text)
    assert isinstance(text, Markup)
    assert page.of("div", role="img")[0]["aria-label"] == 'a "ladder" <of sizes>'
    assert len(page.of("polygon")) == len(page.of("polyline")) == 2
    assert len(page.of("circle")) == 4 and len(page.of("g", **{"class": "span"})) == 1
    assert "wukong <S>" in page.words or "wukong &lt;S&gt;" in text
    assert "3x <fewer>" in page.words
    assert len(page.of("g", **{"class": "labels wide"})) == len(page.of("g", **{"class": "labels narrow"})) == 1


def test_points_lie_where_their_values_are() -> None:
    plot = Plot(
        linear([0, 10], margin=0),
        linear([0, 1], margin=0),
        x_title="x",
        y_title="y",
        description="",
        heights=(100, 100),
    )
    plot.point(2.5, 0.75, color="ink", title="")
    plot.line([(0, 0), (10, 1)], color="ink")
    page = HtmlPage(plot.markup())
    assert page.of("svg", x="25.000%", y="25.000%")
    assert page.of("polyline")[0]["points"] == "0.0,1000.0 1000.0,0.0"


def test_a_key_explains_numbers_and_only_those() -> None:
    plot = Plot(linear([0, 1]), linear([0, 1]), x_title="x", y_title="y", description="")
    plot.point(0.5, 0.5, color="ink", title="", names=("short", "0"))
    assert plot.key() == ""
    plot.point(0.2, 0.2, color="ink", title="", names=("a name that is far too long for a plot", "1"))
    words = HtmlPage(plot.key()).words
    assert words.count("a name that is far too long for a plot") == 2 and "short" not in words


def test_a_legend_escapes_names() -> None:
    assert HtmlPage(legend([("<b>", "c1", "")])).words == "<b>"


# --- colours ------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1: what people see who lack one kind of cone, in linear RGB.
SIGHT = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
Color = tuple[float, float, float]


def schemes() -> dict[str, dict[str, str]]:
    """The colours of page.css for bright and for dark screens."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.S)[:2]
    return {
        name: dict(re.findall(r"--(\w+): (#\w{6});", block))
        for name, block in zip(("light", "dark"), blocks, strict=True)
    }


def rgb(color: str) -> Color:
    """Linear RGB."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return r, g, b


def mix(matrix: tuple[Color, ...], color: Color) -> Color:
    a, b, c = (min(1.0, max(0.0, sum(m * x for m, x in zip(row, color, strict=True)))) for row in matrix)
    return a, b, c


def contrast(one: str, other: str) -> float:
    """As the accessibility guidelines of the web define it."""
    dark, bright = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (rgb(one), rgb(other)))
    return (bright + 0.05) / (dark + 0.05)


def lab(color: Color) -> Color:
    """CIELAB of linear RGB, D65."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [value / white for value, white in zip(mix(to_xyz, color), (0.9505, 1.0, 1.089), strict=True)]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_shapes_stand_out_from_the_paper(scheme: str) -> None:
    colors = schemes()[scheme]
    for paper in ("paper", "wash"):
        for name in ("ink", "soft", "better", "worse"):
            assert contrast(colors[name], colors[paper]) >= 4.5, (name, paper)
    for i in range(NUM_COLORS):
        assert contrast(colors[series_color(i)], colors["paper"]) >= 3, i


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_are_told_apart_by_everybody(scheme: str, sight: str) -> None:
    colors = schemes()[scheme]
    names = ["ink", *map(series_color, range(NUM_COLORS))]
    seen = {name: lab(mix(SIGHT[sight], rgb(colors[name]))) for name in names}
    nearest = min((math.dist(seen[a], seen[b]), a, b) for a, b in itertools.combinations(names, 2))
    assert nearest[0] > 18, nearest
