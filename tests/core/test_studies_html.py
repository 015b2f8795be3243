"""The HTML report of a study: what it says, that it is one harmless file, and that odd studies do not break it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from fake_studies import VARIANTS, difference, fake_study, many, score
from html_page import HtmlPage

from gemkit.errors import GemkitError
from gemkit.studies.answer import answer, remedy, verdict
from gemkit.studies.figures.cost import pareto
from gemkit.studies.figures.curves import learning_curves
from gemkit.studies.figures.forest import forest
from gemkit.studies.html import to_html, write_html
from gemkit.studies.result import StudyResult

EVIL = "<script>alert(1)</script>"
LONG = "interaction.projection=attentive,interaction.num_fm_tokens=24,interaction.hidden=[512,256],cross.flow=int"


def change(result: StudyResult, index: int, **changes: Any) -> StudyResult:
    """The study with one of its variants changed."""
    variants = list(result.variants)
    variants[index] = dataclasses.replace(variants[index], **changes)
    return dataclasses.replace(result, variants=tuple(variants))


def failed(result: StudyResult, index: int, error: str) -> StudyResult:
    nothing = {"params": None, "dense_params": None, "flops_per_example": None, "examples_per_s": None}
    errors = dict.fromkeys(result.seeds, error)
    return change(result, index, failures=errors, scores={}, differences={}, curves={}, **nothing)


# --- one harmless file --------------------------------------------------------------------------------------


def test_it_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    write_html(fake_study(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = HtmlPage(text)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "xlink:href"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#"), attributes
        assert not any(key.startswith("on") for key in attributes), attributes
    style = re.search("<style>(.*?)</style>", text, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = page.of("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    scripts = re.findall("<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_links_within_the_page_lead_somewhere() -> None:
    page = HtmlPage(to_html(fake_study()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for attributes in page.of("a")]
    labels = [attributes["for"] for attributes in page.of("label")]
    assert len(links) > 5 and len(labels) > 3
    assert set(links + labels) <= set(ids)


def test_whatever_the_user_named_is_escaped() -> None:
    base = dataclasses.replace(fake_study(), notes=(EVIL,), name=EVIL, command=EVIL, dataset=EVIL, base=(EVIL,))
    evil = failed(base, 2, EVIL)
    for index in (1, 3):
        evil = change(
            evil, index, name=EVIL * index, words=(EVIL,), config=EVIL, config_diff=f"+{EVIL}", matched={EVIL: EVIL}
        )
    evil = dataclasses.replace(evil, environment={"gemkit": EVIL, "cpu": f'"{EVIL}', "git": {"commit": EVIL}})
    text = to_html(evil)
    assert EVIL not in text and text.count("<script>") == 1
    assert HtmlPage(text).words.count(EVIL) > 12


def test_a_task_and_a_metric_are_escaped_too() -> None:
    result = fake_study(tasks=(EVIL,), metrics=("auc",))
    odd = result.variants[1].scores[EVIL] | {EVIL: score([0.1, 0.2, 0.3, 0.4, 0.5])}
    text = to_html(change(result, 1, scores={EVIL: odd}))
    assert EVIL not in text and EVIL in HtmlPage(text).words


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GemkitError, match="cannot write"):
        write_html(fake_study(), tmp_path / "none" / "report.html")


# --- what it says -------------------------------------------------------------------------------------------


def test_the_summary_has_every_number() -> None:
    result = fake_study()
    table = HtmlPage(to_html(result)).tables[0]
    assert table[0][:5] == ["variant", "AUC", "difference to base", "relative", "parameters"]
    assert [row[0] for row in table[1:]] == [f"{i} {v.name}" for i, v in enumerate(result.variants)]
    masknet = next(v for v in result.variants if v.name == "masknet")
    found, mine = masknet.differences["rating"]["auc"], masknet.scores["rating"]["auc"]
    row = table[1 + result.variants.index(masknet)]
    assert (found.low, found.high, found.relative, mine.mean) > (0, 0, 0, 0)
    assert row[1] == f"{mine.mean:.5f} ± {mine.sd:.5f}"
    assert row[2] == f"+{found.mean:.5f} +{found.low:.5f} to +{found.high:.5f}"
    assert row[3] == f"+{100 * found.relative:.2f} %"
    assert row[4:] == ["1.74 M", "5.2 M", f"{masknet.examples_per_s:,.0f}", "better"]
    assert "FLOPs per example, forward and backward" in HtmlPage(to_html(result)).words


def test_other_tasks_and_metrics_have_their_own_tables() -> None:
    page = HtmlPage(to_html(fake_study(tasks=("like", "share"))))
    summaries = re.findall(r"(like|share): ([\w() -]+?)(?=\d better|\d worse|\d not)", page.words)
    assert [task for task, _ in summaries] == ["like"] * 3 + ["share"] * 4
    assert len(page.tables) == 1 + 1 + 7  # summary, ends of the curves, the others


def test_configs_diffs_words_and_what_was_matched() -> None:
    page = HtmlPage(to_html(change(fake_study(), 1, matched={"interaction.rank": 23})))
    assert "interaction.rank=23" in page.words and "interaction=dcnv2" in page.words
    assert "data=movielens1m interaction=wukong sequence=none" in page.words
    assert len(page.of("span", **{"class": "added"})) == len(page.of("span", **{"class": "removed"})) == 6


def test_the_answer_in_a_sentence() -> None:
    assert answer(fake_study()).startswith("3 of 6 variants differ from the base beyond chance in AUC: masknet (+0.00")
    assert answer(fake_study()).endswith("none (\u22120.0188) and dlrm (\u22120.0045) are worse.")
    one = {name: VARIANTS[name] for name in ("base", "masknet")}
    assert answer(fake_study(one)).startswith("1 of 1 variant differs from the base beyond chance in AUC: masknet")
    same = {name: VARIANTS[name] for name in ("base", "dcnv2")}
    assert answer(fake_study(same)) == "The one variant does not differ from the base beyond chance in AUC at 5 seeds."
    assert "6 variants" not in answer(fake_study(num_seeds=1)) and "One seed" in answer(fake_study(num_seeds=1))
    assert answer(failed(fake_study(), 2, "NaN")).endswith("1 of 6 could not be compared.")
    assert "nothing can be compared" in answer(failed(fake_study(one), 1, "NaN"))
    assert "nothing to compare" in answer(fake_study({"base": VARIANTS["base"]}))
    assert "22 of 29" in answer(fake_study(many(30), metric="ne")) and "more are worse" in answer(fake_study(many(30)))


def test_a_verdict_says_what_would_resolve_it() -> None:
    base, near = score([0.8, 0.801, 0.802]), score([0.8003, 0.8019, 0.8018])
    open_ = difference("auc", near, base)
    assert verdict(open_) == "not resolved at 3 seeds"
    assert open_.seeds_needed and remedy(open_) == f"about {open_.seeds_needed} seeds would resolve it"
    tiny = dataclasses.replace(open_, mean=0.0001, seeds_needed=None)
    assert remedy(tiny) == "the test split is too small to tell"
    assert remedy(dataclasses.replace(tiny, examples_part=None)) == ""
    assert remedy(dataclasses.replace(tiny, verdict="better")) == ""


# --- figures ------------------------------------------------------------------------------------------------


def test_the_forest_runs_from_best_to_worst_and_says_which_side_is_good() -> None:
    for metric, good in (("auc", "right"), ("logloss", "left")):
        found = forest(fake_study(), "rating", metric)
        assert found is not None and found.good == good
        names = [row.variant.name for row in found.rows]
        assert (names[0], names[-1]) == ("masknet", "none")
        best = found.rows[0]
        assert best.low is not None and best.high is not None
        assert 0 <= best.low < best.mean < best.high <= 100
        assert (best.low > found.zero) == (good == "right")
        assert len(best.seeds) == 5
        center = sum(best.seeds) / 5
        assert center == pytest.approx(best.mean, abs=1e-6)


def test_one_far_variant_does_not_flatten_the_others() -> None:
    result = fake_study(VARIANTS | {"broken": (("interaction=broken",), -0.3, 1e6, 1_300_000)})
    found = forest(result, "rating", "auc")
    assert found is not None and found.clipped
    assert found.rows[-1].variant.name == "broken" and found.rows[-1].beyond == ("left",)
    assert [row.beyond for row in found.rows[:-2]] == [()] * 5
    best = found.rows[0]
    assert best.low is not None and best.high is not None and best.high - best.low > 5
    assert "Arrows: the rest lies off the axis" in HtmlPage(to_html(result)).words


def test_identical_runs_do_not_clip_those_that_differ() -> None:
    result = fake_study({name: VARIANTS[name] for name in ("base", "dcnv2", "dlrm", "autoint", "masknet")})
    base = result.variants[0].scores["rating"]
    zero = {"rating": {"auc": difference("auc", base["auc"], base["auc"])}}
    zero["rating"]["auc"] = dataclasses.replace(zero["rating"]["auc"], low=0.0, high=0.0)
    for index in (1, 2, 3):
        result = change(result, index, scores=result.variants[0].scores, differences=zero)
    found = forest(result, "rating", "auc")
    assert found is not None and not found.clipped and found.rows[0].mean > found.zero + 20


def test_the_front_is_what_nothing_else_beats() -> None:
    points = [(1.0, 0.70), (2.0, 0.75), (3.0, 0.74), (4.0, 0.80), (4.0, 0.79), (1.0, 0.70)]
    assert pareto(points, cheap_is_low=True, high_is_good=True) == [0, 5, 1, 3]
    assert pareto(points, cheap_is_low=False, high_is_good=True) == [3]
    assert pareto(points, cheap_is_low=True, high_is_good=False) == [0, 5]
    assert pareto([], cheap_is_low=True, high_is_good=True) == []


def test_curves_are_means_over_seeds_as_far_as_all_go() -> None:
    result = fake_study(num_seeds=2)
    rows = [[{"step": i, "examples": 10 * i, "auc": 0.5 + 0.01 * i + seed} for i in range(1, 5)] for seed in (0, 1)]
    rows[1].pop()
    rows[0][0]["auc"] = None
    found = learning_curves(change(result, 0, curves=dict(enumerate(rows))))[0].curves[0]
    assert found.points == (pytest.approx((20, 1.02, 0.52, 1.52)), pytest.approx((30, 1.03, 0.53, 1.53)))


def test_differences_of_curves_are_paired() -> None:
    result = fake_study(num_seeds=2)
    for index, lead in ((0, 0.0), (1, 0.25)):
        curves = {seed: [{"step": i, "examples": i, "auc": seed + lead} for i in (1, 2)] for seed in (0, 1)}
        result = change(result, index, curves=curves)
    view = learning_curves(result)[1]
    assert view.quantity == "AUC minus the base's"
    assert view.curves[0].points[0][1:] == (0.0, 0.0, 0.0)
    assert view.curves[1].points[0][1:] == (0.25, 0.25, 0.25)


def test_many_curves_are_drawn_apart() -> None:
    few, crowd = learning_curves(fake_study())[0], learning_curves(fake_study(many(30)))[0]
    assert few.together is not None and not few.apart
    assert crowd.together is None and len(crowd.apart) == 29


def test_one_evaluation_is_no_curve() -> None:
    result = fake_study(num_seeds=2)
    for index in range(len(result.variants)):
        result = change(result, index, curves={0: [{"step": 1, "examples": 10, "auc": 0.7}]})
    assert learning_curves(result) == []
    assert not HtmlPage(to_html(result)).of("h2", id="curves")


# --- odd studies --------------------------------------------------------------------------------------------


def odd_studies() -> dict[str, StudyResult]:
    usual = fake_study()
    bare = {"params": None, "flops_per_example": None, "examples_per_s": None, "curves": {}}
    undefined = {"rating": {"auc": score([None] * 5)}}
    costless = usual
    for index in range(len(usual.variants)):
        costless = change(costless, index, **bare)
    return {
        "one seed": fake_study(num_seeds=1),
        "lower is better": fake_study(metric="ne"),
        "a failed variant": failed(usual, 2, "GemkitError: NaN\n  where:   step 12"),
        "a failed base": dataclasses.replace(
            failed(usual, 0, "out of memory"),
            variants=tuple(dataclasses.replace(v, differences={}) for v in failed(usual, 0, "out of memory").variants),
        ),
        "no flops": change(usual, 1, flops_per_example=None),
        "no costs": costless,
        "a single variant": fake_study({"base": VARIANTS["base"]}),
        "an undefined metric": change(usual, 1, scores=undefined, differences={}),
        "one seed undefined": change(usual, 1, scores={"rating": {"auc": score([0.79, None, 0.8, 0.79, 0.8])}}),
        "30 variants": fake_study(many(30)),
        "a long name": change(usual, 4, name=LONG * 3),
        "a metric without a better side": change(
            usual, 1, scores={"rating": usual.variants[1].scores["rating"] | {"calibration": score([1.0] * 5)}}
        ),
        "nothing known of the machine": dataclasses.replace(usual, environment={}, notes=(), base=()),
        "curves without examples": change(usual, 1, curves={0: [{"step": 1, "examples": None, "auc": 0.7}]}),
    }


@pytest.mark.parametrize("name", odd_studies())
def test_odd_studies(name: str) -> None:
    result = odd_studies()[name]
    page = HtmlPage(to_html(result))
    assert all(variant.name in page.words for variant in result.variants)
    assert not re.search(r"\b(None|nan|inf)\b", page.words.replace("--- None", ""))
    for _, attributes in page.elements:
        assert not re.search(r"\bnan|\binf\b|None", attributes.get("style", "") + attributes.get("points", ""))


def test_failures_are_told_once_with_their_seeds() -> None:
    result = failed(fake_study(), 2, "GemkitError: the model predicts NaN")
    errors = dict(result.variants[2].failures) | {4: "killed"}
    page = HtmlPage(to_html(change(result, 2, failures=errors)))
    assert page.words.count("the model predicts NaN") == 1
    assert "Failed for seed 0, 1, 2, 3:" in page.words and "Failed for seed 4:" in page.words
    assert page.tables[0][3][-1] == "failed (5 seeds)"


def test_without_costs_there_is_no_cost_plot() -> None:
    ids = [a["id"] for _, a in HtmlPage(to_html(odd_studies()["no costs"])).elements if "id" in a]
    assert "cost" not in ids and "differences" in ids
