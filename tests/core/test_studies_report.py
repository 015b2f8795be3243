"""Reports in Markdown, CSV and JSON: what a study found, in every form."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from fake_studies import fake_study
from rich.console import Console

from gemkit.errors import GemkitError
from gemkit.studies.report import print_summary, read_result, to_csv, to_json, to_markdown, write_reports
from gemkit.studies.result import StudyResult


@pytest.fixture
def study() -> StudyResult:
    return fake_study(tasks=("click", "buy"), num_seeds=4)


def with_failure(study: StudyResult) -> StudyResult:
    failed = dataclasses.replace(
        study.variants[1], failures={3: "error: the loss is nan\n(exit code 2)"}, scores={}, differences={}
    )
    return dataclasses.replace(study, variants=(study.variants[0], failed, *study.variants[2:]), notes=("One failed.",))


def test_json_reads_back_the_same(study: StudyResult, tmp_path: Path) -> None:
    for result in (study, with_failure(study)):
        write_reports(result, tmp_path)
        assert read_result(tmp_path) == read_result(tmp_path / "report.json") == result


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "name": "x"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(GemkitError, match=r"report\.json is no report of a study"):
        read_result(tmp_path)
    with pytest.raises(GemkitError, match=r"there is no report\.json"):
        read_result(tmp_path / "nowhere.json")


def test_csv_has_a_row_for_each_metric(study: StudyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert len(rows) == sum(len(metrics) for v in study.variants for metrics in v.scores.values())
    base, variant = study.variants[0], study.variants[2]
    of_base = next(r for r in rows if (r["variant"], r["task"], r["metric"]) == (base.name, "buy", "ne"))
    assert float(of_base["mean"]) == base.scores["buy"]["ne"].mean and of_base["verdict"] == ""
    row = next(r for r in rows if (r["variant"], r["task"], r["metric"]) == (variant.name, "buy", "ne"))
    one = variant.differences["buy"]["ne"]
    assert (float(row["difference_mean"]), float(row["difference_low"])) == (one.mean, one.low)
    assert (row["verdict"], int(row["difference_seeds"]), int(row["seeds"])) == (one.verdict, one.num_seeds, 4)
    assert float(row["flops_per_example"]) == variant.flops_per_example


def test_markdown_says_it_all(study: StudyResult) -> None:
    text = to_markdown(with_failure(study))
    for words in (
        study.command,
        "## AUC of click",
        "## NE of buy",
        "* One failed.",
        "## Failures",
        "error: the loss is nan",
    ):
        assert words in text
    table = text.partition("## AUC of click")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 2 + len(study.variants)
    assert len({line.count("|") for line in table}) == 1
    assert "NE, relative" in table[0] and "FLOPs/example" in table[0] and "verdict" in table[0]
    variant = study.variants[2]
    line = next(line for line in table if line.startswith(f"| {variant.name} |"))
    mean = variant.scores["click"]["auc"].mean
    assert mean is not None and f"{mean:.4f}" in line
    assert variant.differences["click"]["auc"].verdict in line


def test_a_name_cannot_break_the_table(study: StudyResult) -> None:
    odd = dataclasses.replace(study.variants[1], name="a|b")
    text = to_markdown(dataclasses.replace(study, variants=(study.variants[0], odd)))
    assert "| a\\|b |" in text


def test_intervals_without_resamples_say_so(study: StudyResult) -> None:
    assert "test examples were not resampled" not in to_markdown(study).partition("## Notes")[0]
    blind = {
        t: {m: dataclasses.replace(d, examples_part=None) for m, d in ms.items()}
        for t, ms in study.variants[1].differences.items()
    }
    result = dataclasses.replace(
        study, variants=(study.variants[0], dataclasses.replace(study.variants[1], differences=blind))
    )
    assert "chance of seeds alone: test examples were not resampled" in to_markdown(result).partition("## Notes")[0]


def test_the_terminal_gets_the_summary(study: StudyResult) -> None:
    console = Console(file=io.StringIO(), width=80)
    print_summary(study, [Path("report.md")], console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "AUC of click" and lines[-1] == "report.md"
    assert [line.split()[0] for line in lines[2 : 2 + len(study.variants)]] == [v.name for v in study.variants]


def test_json_holds_no_nan(study: StudyResult) -> None:
    variant = dataclasses.replace(study.variants[0], examples_per_s=float("nan"))
    loaded = json.loads(to_json(dataclasses.replace(study, variants=(variant,))))
    assert loaded["variants"][0]["examples_per_s"] is None
