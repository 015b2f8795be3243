"""Variants are brought to the base's cost by their width, and what cannot be is said."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
from fake_plugins import FakePlugin, fake_registry, make

from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.config.study import StudyConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.studies.match import matched, scaled, search
from gemkit.studies.plan import Plan, make_plan


class Wide(Config):
    """A config that declares its width."""

    width_field: ClassVar[str | None] = "hidden"


WIDTHS = ("tuple[int, ...]", option((64,), "Widths.", ge=1, le=2000))


@pytest.fixture(scope="module")
def registry() -> Registry:
    more = FakePlugin(
        make("interaction", "mlp", Wide, hidden=WIDTHS),
        make("interaction", "empty", Wide, hidden=("tuple[int, ...]", option((), "Widths.", ge=1))),
        make("sequence", "wide", Wide, hidden=("int", option(10, "Width.", ge=1))),
        make("cross", "ratio", Wide, hidden=("float", option(1.0, "Width in units of D.", gt=0))),
    )
    return fake_registry(more=more)


def cost(run: RunConfig) -> float:
    """About what parameters would be: 50,000 for the base."""
    widths = getattr(run.interaction, "hidden", ())
    interaction = {"wukong": 40_000, "dcn": 39_500, "none": 0}.get(name_of(run.interaction), 500 + 100 * sum(widths))
    sequence = {"pyramid": 10_000, "none": 0}.get(name_of(run.sequence), 100 * getattr(run.sequence, "hidden", 0))
    return interaction + sequence + 10_000 * getattr(run.cross, "hidden", 0)


def name_of(config: Any) -> str:
    return config.name if config else "none"


def match(registry: Registry, *toggles: str, stored: Any = (), **options: Any) -> Plan:
    plan = make_plan(StudyConfig(**{"match": "params", "toggles": toggles} | options), registry)
    return matched(plan, registry, cost, dict(stored))


def test_a_width_is_scaled_until_the_costs_are_equal(registry: Registry) -> None:
    plan = match(registry, "interaction=mlp")
    variant = plan.variants[1]
    assert plan.base.matched == {} and plan.base.note == ""
    assert variant.matched == {"interaction.hidden": [395]}
    assert variant.words == ("interaction=mlp",)
    assert variant.overrides == ("interaction=mlp", "interaction.hidden=[395]")
    assert cost(variant.run) == 50_000
    expected = (
        "interaction=mlp has interaction.hidden = [395] in place of [64]: 1.000 times the base's dense parameters"
    )
    assert variant.note == expected + ", not 0.338."


def test_all_of_several_widths_are_scaled(registry: Registry) -> None:
    variants = {"deep": ("interaction=mlp", "interaction.hidden=[400,200,100]")}
    hidden = match(registry, variants=variants).variants[1].matched["interaction.hidden"]
    assert hidden == [
        pytest.approx(400 * 395 / 700, abs=1),
        pytest.approx(200 * 395 / 700, abs=1),
        pytest.approx(100 * 395 / 700, abs=1),
    ]
    assert 100 * sum(hidden) + 10_500 == pytest.approx(50_000, rel=0.02)


def test_a_width_that_is_no_whole_number(registry: Registry) -> None:
    plan = match(registry, "cross=ratio", base=("interaction=mlp", "interaction.hidden=[100]"), match_with=None)
    assert plan.variants[1].matched["cross.hidden"] < 0.05  # down to as good as nothing
    variants = {"x": ("cross=ratio", "interaction=none")}
    plan = match(registry, variants=variants)
    assert plan.variants[1].matched == {"cross.hidden": pytest.approx(4.0, rel=0.02)}


def test_what_costs_the_same_stays(registry: Registry) -> None:
    variant = match(registry, "interaction=dcn").variants[1]
    assert variant.matched == {} and variant.overrides == ("interaction=dcn",)
    assert variant.note == "interaction=dcn has 0.990 times the base's dense parameters as it is."


def test_the_field_can_be_chosen(registry: Registry) -> None:
    base = ("interaction=mlp",)
    by_key = match(registry, "sequence=wide", base=base, match_with="interaction.hidden").variants[1]
    by_kind = match(registry, "sequence=wide", base=base, match_with="interaction").variants[1]
    own = match(registry, "sequence=wide", base=base).variants[1]
    assert by_key.matched == by_kind.matched == {"interaction.hidden": [154]}
    assert own.matched == {"sequence.hidden": 100}


def test_what_was_matched_is_not_searched_again(registry: Registry) -> None:
    stored = {"interaction=mlp": ({"interaction.hidden": [7]}, "as before")}
    variant = match(registry, "interaction=mlp", stored=stored.items()).variants[1]
    assert variant.run.interaction.hidden == (7,) and variant.note == "as before"


def test_whole_numbers_may_not_allow_it(registry: Registry) -> None:
    """Steps of 2 widths at 100 each, around a goal of 900 for both."""
    base = ("interaction=mlp", "interaction.hidden=[4]", "sequence=none", "cross=none")
    variants = {"two": ("interaction=mlp", "interaction.hidden=[50,50]")}
    variant = match(registry, base=base, variants=variants).variants[1]
    assert variant.matched == {"interaction.hidden": [2, 2]}
    variants = {"three": ("interaction.hidden=[50,50,50]",)}
    variant = match(registry, base=base, variants=variants).variants[1]
    assert variant.matched in ({"interaction.hidden": [1, 1, 1]}, {"interaction.hidden": [2, 2, 2]})
    assert variant.note.endswith("Whole numbers do not come nearer.")


SMALL = ("interaction=mlp", "interaction.hidden=[1]", "sequence=none", "cross=none")
LARGE = ("interaction=mlp", "interaction.hidden=[2000,2000]")


@pytest.mark.parametrize(
    ("words", "options", "what", "where"),
    [
        ("interaction=none", {}, "nothing that it changes declares a width", "--match"),
        ("interaction=mlp sequence=wide", {}, "more than one width could be adjusted", "--match"),
        ("interaction=none", {"match_with": "cross"}, "no cross of it declares a width", "--match"),
        ("interaction=none", {"match_with": "interaction.hidden"}, "the run has no interaction.hidden", "--match-with"),
        ("interaction=none", {"match_with": "nothing"}, "the run has no nothing", "--match-with"),
        ("interaction=empty", {}, "interaction.hidden = [] cannot be scaled", "interaction.hidden"),
        ("sequence=wide", {"base": SMALL}, "no sequence.hidden gives it", "sequence.hidden"),
        ("interaction.hidden=[64]", {"base": LARGE}, "[2000] has 0.513 times", "interaction.hidden"),
    ],
)
def test_what_cannot_be_matched(registry: Registry, words: str, options: dict[str, Any], what: str, where: str) -> None:
    with pytest.raises(GemkitError) as caught:
        match(registry, variants={"odd": tuple(words.split())}, **options)
    assert what in caught.value.what and caught.value.where == f"{where}, in variant 'odd'"


@pytest.mark.parametrize("goal", [0.002, 0.7, 1.0, 1.0001, 37.5, 3000.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_search_finds_the_nearest(goal: float, power: float) -> None:
    seen = []

    def ratio(width: int) -> float:
        seen.append(width)
        return (width / (64 * goal)) ** power

    best, found, between = search(64, ratio)
    nearest = min(range(1, 64 * 4097), key=lambda width: abs((width / (64 * goal)) ** power - 1))
    assert best == nearest
    assert found == pytest.approx((best / (64 * goal)) ** power)
    assert between == (64 * goal > 1) or math.isclose(found, 1)
    assert len(seen) < 40 and len(seen) == len(set(seen))


def test_a_width_that_is_refused_is_too_large() -> None:
    assert search(8, lambda width: None if width > 20 else width / 100) == (20, 0.2, False)


def test_scaling() -> None:
    assert scaled(64, 0.5) == 32 and scaled(3, 0.01) == 1 and scaled(2.0, 1.23456) == 2.469
    assert scaled((100, 3), 0.1) == (10, 1)
