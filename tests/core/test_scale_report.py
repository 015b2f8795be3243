"""Reports of ladders: the same result in every form, in one harmless file each."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
from fake_scale import FLOOR, fake_scale
from html_page import HtmlPage
from rich.console import Console

from gemkit.errors import GemkitError
from gemkit.studies.scaling.html import to_html
from gemkit.studies.scaling.report import print_summary, read_scale, to_csv, to_json, to_markdown, write_reports
from gemkit.studies.scaling.result import ArchResult, Interval, Point, ScaleResult
from gemkit.studies.scaling.words import answer, interval_words, ratio_words
from gemkit.studies.statistics import score

EVIL = "<script>alert(1)</script>"


def change(result: ScaleResult, index: int, **changes: Any) -> ScaleResult:
    """The result with one of its architectures changed."""
    archs = list(result.archs)
    archs[index] = dataclasses.replace(archs[index], **changes)
    return dataclasses.replace(result, archs=tuple(archs))


def failed(point: Point, error: str) -> Point:
    nothing = dict.fromkeys(("flops_per_example", "examples", "params", "dense_params", "examples_per_s"))
    seeds = dict.fromkeys((1, 2, 3), error)
    return dataclasses.replace(point, score=score([None] * 3), failures=seeds, **nothing)  # type: ignore[arg-type]


def with_failure(error: str = "error: the loss is nan\n(exit code 2)") -> ScaleResult:
    """Of wukong, one size has failed, and its law is missing for another reason."""
    result = fake_scale()
    first = result.archs[0]
    points = (first.points[0], failed(first.points[1], error), *first.points[2:])
    result = change(result, 0, points=points, fit=None, obstacle="no reason")
    comparisons = tuple(
        dataclasses.replace(one, levels=(), obstacle="wukong has no law") if one.arch == first.name else one
        for one in result.comparisons
    )
    return dataclasses.replace(result, comparisons=comparisons)


def odd_results() -> dict[str, ScaleResult]:
    usual = fake_scale()
    nothing = tuple(
        ArchResult(
            name=a.name,
            words=a.words,
            points=tuple(failed(p, "killed") for p in a.points),
            fit=None,
            obstacle="0 of 5 sizes have a value",
        )
        for a in usual.archs
    )
    steep = change(usual, 0, fit=dataclasses.replace(usual.archs[0].fit, alpha=40.0)) if usual.archs[0].fit else usual
    return {
        "usual": usual,
        "a fitted floor": fake_scale(known=False),
        "much noise": fake_scale(known=False, noise=0.02, num_rungs=4),
        "one architecture": fake_scale(names=("wukong",)),
        "one seed": fake_scale(num_seeds=1),
        "no intervals": fake_scale(num_seeds=1, num_rungs=3, known=False),
        "a failed size": with_failure(),
        "nothing but failures": dataclasses.replace(usual, archs=nothing, comparisons=()),
        "training FLOPs": dataclasses.replace(usual, cost="training_flops"),
        "logloss": dataclasses.replace(usual, metric="logloss"),
        "a steep law": steep,
        "nothing known of the machine": dataclasses.replace(usual, environment={}, notes=(), base=()),
        "no noise": fake_scale(noise=0.0),
    }


@pytest.mark.parametrize("name", odd_results())
def test_every_result_has_every_report(name: str, tmp_path: Path) -> None:
    result = odd_results()[name]
    paths = write_reports(result, tmp_path)
    assert [path.name for path in paths] == ["scale.md", "scale.csv", "scale.json", "scale.html", "scale.svg"]
    assert read_scale(tmp_path) == read_scale(tmp_path / "scale.json") == result
    page = HtmlPage((tmp_path / "scale.html").read_text(encoding="utf-8"))
    markdown = (tmp_path / "scale.md").read_text(encoding="utf-8")
    for arch in result.archs:
        assert arch.name in page.words and arch.name in markdown
    for text in (page.words, markdown):
        assert not re.search(r"\b(None|nan|inf)\b", text.replace("the loss is nan", ""))
    for _, attributes in page.elements:
        assert not re.search(r"\bnan|\binf\b|None", attributes.get("style", "") + attributes.get("points", ""))
    root = xml.etree.ElementTree.fromstring((tmp_path / "scale.svg").read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")


def test_no_table_of_a_report_is_broken(tmp_path: Path) -> None:
    text = to_markdown(change(fake_scale(), 0, name="a|b"))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 3 and [len(table) - 2 for table in tables] == [3, 9, 15]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_what_it_says() -> None:
    result = fake_scale()
    level = result.comparisons[1].levels[1]
    assert level.interval is not None
    assert answer(result).endswith(
        f"At NE {level.value:.4f} dlrm takes {level.ratio:.2f}x the FLOPs/example of wukong (95 % interval "
        f"{level.interval.low:.2f}x to {level.interval.high:.2f}x)."
    )
    assert answer(result).count("At NE") == 2  # each with the first architecture
    turned = answer(fake_scale(names=("dlrm", "wukong")))
    assert re.fullmatch(r"At NE 0\.86\d\d dlrm takes [23]\.\d\dx the FLOPs/example of wukong \(.*\)\.", turned)
    same = answer(fake_scale(names=("wukong", "dcnv2"), noise=0.01))
    assert "which is not resolved from equal" in same or "not comparable" in same
    alone = answer(fake_scale(names=("wukong",)))
    assert alone.startswith("NE of wukong goes as 0.8500 + 0.0") and alone.endswith("C in FLOPs/example.")
    assert "not comparable: wukong has no law" in answer(with_failure())
    assert answer(odd_results()["nothing but failures"]) == "No architecture has a law yet."


def test_numbers_in_words() -> None:
    assert [ratio_words(x) for x in (0.501, 3, 9.999, 31.42, 99.99, 31_420)] == [
        "0.50x",
        "3.00x",
        "10.0x",
        "31.4x",
        "100x",
        "31.4\u202fkx",
    ]
    words = [
        interval_words(i, ratio_words)
        for i in (
            Interval(low=1.5, high=2.0),
            Interval(low=1.5, high=None),
            Interval(low=0.0, high=None),
            Interval(low=None, high=None),
            Interval(low=None, high=2.0),
            None,
        )
    ]
    assert words == ["1.50x to 2.00x", "above 1.50x", "unbounded", "unbounded", "0.00x to 2.00x", "\N{EN DASH}"]


def test_the_page_has_every_number() -> None:
    result = fake_scale()
    page = HtmlPage(to_html(result))
    equal, laws, sizes = page.tables
    assert len(equal) == 4 and len(laws) == 4 and len(sizes) == 16
    level = result.comparisons[1].levels[1]
    assert equal[2][0] == "dlrm, as a multiple of wukong"
    assert level.interval is not None and level.interval.high is not None
    interval = f"{level.interval.low:.2f}x to {level.interval.high:.2f}x"
    assert equal[2][2] == f"{level.ratio:.2f}x at {level.value:.5f} {interval}"
    fit = result.archs[2].fit
    assert fit is not None and fit.alpha_interval is not None
    assert laws[3][4] == f"{fit.alpha:.3f} {fit.alpha_interval.low:.3f} to {fit.alpha_interval.high:.3f}"
    assert laws[3][1] == f"{FLOOR:.5f} that of the true probabilities"
    point = result.archs[0].points[1]
    assert sizes[2][0] == "wukong 2" and point.score.mean is not None
    assert sizes[2][1:5] == [
        f"{point.score.mean:.5f} ± {point.score.sd:.5f}",
        "400 k",
        "200 k",
        "80 G",
    ]


def test_the_plot_is_faint_where_nothing_was_measured() -> None:
    page = HtmlPage(to_html(fake_scale()))
    lines, bands = page.of("polyline"), page.of("polygon")
    for shapes in (lines, bands):
        assert sum("faint" in shape["class"].split() for shape in shapes) == 6
        assert sum("faint" not in shape["class"].split() for shape in shapes) == 3
    assert len(page.of("circle")) == 15


def test_links_within_the_page_lead_somewhere() -> None:
    page = HtmlPage(to_html(fake_scale()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for attributes in page.of("a")]
    assert len(links) > 5 and set(links) <= set(ids)


def test_it_loads_nothing_and_whatever_was_named_is_escaped() -> None:
    evil = with_failure(EVIL)
    evil = dataclasses.replace(evil, notes=(EVIL,), name=EVIL, command=EVIL, dataset=EVIL, task=EVIL, base=(EVIL,))
    points = tuple(dataclasses.replace(p, name=EVIL, words=(EVIL,), config=EVIL) for p in evil.archs[1].points)
    evil = change(evil, 1, name=EVIL, points=points)
    evil = change(evil, 0, obstacle=EVIL)
    evil = dataclasses.replace(evil, environment={"gemkit": EVIL})
    comparisons = tuple(dataclasses.replace(one, other=EVIL, obstacle=EVIL) for one in evil.comparisons)
    text = to_html(dataclasses.replace(evil, comparisons=comparisons))
    assert EVIL not in text and text.count("<script>") == 1
    page = HtmlPage(text)
    assert page.words.count(EVIL) > 15
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "xlink:href"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#"), attributes


def test_the_svg_is_the_same_each_time_and_has_no_mathematics_in_names(tmp_path: Path) -> None:
    result = change(fake_scale(), 0, name="a_$b$<c>")
    write_reports(result, tmp_path)
    before = (tmp_path / "scale.svg").read_bytes()
    write_reports(result, tmp_path)
    assert (tmp_path / "scale.svg").read_bytes() == before


def test_csv_has_a_row_for_each_point() -> None:
    result = with_failure()
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert len(rows) == 15
    point, fit = result.archs[1].points[2], result.archs[1].fit
    row = rows[7]
    assert (row["ladder"], row["arch"], row["rung"], row["seeds"]) == ("interactions", "dcnv2", "3", "3")
    assert float(row["mean"]) == point.score.mean and float(row["training_flops"]) == point.training_flops
    assert fit is not None and float(row["law"]) == pytest.approx(fit.at(point.flops_per_example or 0))
    assert abs(float(row["law"]) - float(row["mean"])) < 0.003
    assert rows[1]["mean"] == rows[1]["law"] == rows[1]["flops_per_example"] == "" and rows[1]["seeds"] == "0"


def test_the_terminal_gets_the_tables() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_summary(with_failure(), [Path("scale.md")], console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "NE of click" and lines[-1] == "scale.md"
    assert "note: Invented, for a look at the report." in lines and "cost at equal quality" in lines


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "name": "x"}'])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text(text)
    with pytest.raises(GemkitError, match=r"scale\.json is no report of a ladder"):
        read_scale(tmp_path)
    with pytest.raises(GemkitError, match=r"there is no scale\.json"):
        read_scale(tmp_path / "nowhere.json")


def test_json_holds_no_nan() -> None:
    result = fake_scale()
    points = (dataclasses.replace(result.archs[0].points[0], examples_per_s=float("inf")), *result.archs[0].points[1:])
    loaded = json.loads(to_json(change(result, 0, points=points)))
    assert loaded["archs"][0]["points"][0]["examples_per_s"] is None
