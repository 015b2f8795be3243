"""Laws of ladders: planted ones come back, their intervals hold the truth as often as they say, odd data are told."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from gemkit.studies.scaling import fit as module
from gemkit.studies.scaling import law
from gemkit.studies.scaling.fit import Fitted, compare, fit_law, interval
from gemkit.studies.scaling.noise import Noise
from gemkit.studies.scaling.result import Interval

COSTS = 1e5 * 4.0 ** np.arange(5)
FLOOR, SCALE, ALPHA = 0.85, 0.03, 0.35
NOISE = 8e-4


def planted(costs: np.ndarray, times: float = 1.0) -> np.ndarray:
    """The law, for an architecture that takes so many times the cost."""
    return FLOOR + SCALE * (np.asarray(costs) / times / 1e5) ** -ALPHA


def ladder(
    rng: np.random.Generator,
    floor: float | None,
    *,
    times: float = 1.0,
    costs: np.ndarray = COSTS,
    num_seeds: int = 3,
    noise: float = NOISE,
    scatter: float = 0.0,
    stream: int = 0,
) -> Fitted:
    """The fit of a ladder with noise of seeds, and with scatter that all seeds of a size share."""
    means = planted(costs, times) + scatter * rng.standard_normal(len(costs))
    runs = means[:, None] + noise * rng.standard_normal((len(costs), num_seeds))
    return fit_law(list(costs), runs.tolist(), floor, (costs[0] / 2, costs[-1] * 2), stream)


def holds(found: Interval | None, value: float) -> bool:
    assert found is not None
    return (found.low is None or found.low <= value) and (found.high is None or value <= found.high)


# --- fits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floor", "scale", "alpha"), [(0.8, 0.05, 0.3), (0.0, 0.9, 0.05), (0.7, 0.1, 1.2), (0.5, 0.3, 0.02)]
)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_planted_law_comes_back(floor: float, scale: float, alpha: float, is_known: bool) -> None:
    values = floor + scale * (COSTS / COSTS[0]) ** -alpha
    found = law.fit(COSTS, values[None], np.ones(5), floor if is_known else None)
    assert found.floor[0] == pytest.approx(floor, abs=1e-5)
    assert (found.scale[0], found.alpha[0]) == (pytest.approx(scale, rel=1e-4), pytest.approx(alpha, rel=1e-4))
    assert found.at(COSTS)[0] == pytest.approx(values, abs=1e-9)
    assert found.costs_at(float(values[3]))[0] == pytest.approx(COSTS[3], rel=1e-6)


def test_no_law_misses_the_points_by_less() -> None:
    """A dense search over all three parameters finds nothing better, also where the floor's bound holds."""
    rng = np.random.default_rng(0)
    weights = np.array([3.0, 3, 2, 3, 1])
    for values in [*(planted(COSTS) + 0.003 * rng.standard_normal((8, 5))).tolist(), [0.9, 0.7, 0.5, 0.3, 0.1]]:
        found = law.fit(COSTS, np.array([values]), weights)
        missed = (weights * (found.at(COSTS)[0] - values) ** 2).sum()
        assert found.floor[0] >= 0 and found.scale[0] >= 0
        floors = np.linspace(0, max(values), 60)[:, None, None]
        scales = np.linspace(0, 1, 120)[None, :, None]
        for alpha in np.linspace(0, 3, 60):
            others = floors + scales * (COSTS / COSTS[0]) ** -alpha
            assert missed <= (weights * (others - values) ** 2).sum(-1).min() + 1e-12


def test_points_weigh_as_many_seeds_as_they_have() -> None:
    runs = [[value] * 3 for value in planted(COSTS)]
    runs[2] = [runs[2][0] + 0.01]
    odd = fit_law(list(COSTS), runs, FLOOR, (1e5, 1e8))
    runs[2] *= 3
    odder = fit_law(list(COSTS), runs, FLOOR, (1e5, 1e8))
    truth, first, second = (float(x) for x in (planted(COSTS[2:3])[0], odd.fit.at(COSTS[2]), odder.fit.at(COSTS[2])))
    assert truth < first < second


def test_what_does_not_fall_is_flat() -> None:
    for values in ([0.8, 0.81, 0.82, 0.83, 0.84], [0.8] * 5):
        for floor in (None, 0.7):
            found = law.fit(COSTS, np.array([values]), np.ones(5), floor)
            assert found.alpha[0] == 0 and found.at(COSTS)[0] == pytest.approx([np.mean(values)] * 5)
            assert found.costs_at(0.9)[0] == 0 and found.costs_at(0.75)[0] == np.inf


def test_flat_data_are_not_resolved() -> None:
    rng = np.random.default_rng(1)
    unresolved = 0
    for _ in range(40):
        runs = (0.85 + NOISE * rng.standard_normal((5, 3))).tolist()
        found = fit_law(list(COSTS), runs, None, (1e5, 1e8)).fit
        assert found.alpha_interval is not None
        assert found.resolved == (found.alpha_interval.low != 0)
        unresolved += found.resolved is False
    assert unresolved >= 35
    assert ladder(rng, None).fit.resolved is True


def test_a_step_has_no_upper_end_of_alpha() -> None:
    runs = [[0.9, 0.9001], [0.85, 0.8501], [0.85, 0.8499], [0.85, 0.8501]]
    found = fit_law(list(COSTS[:4]), runs, None, (1e5, 1e7)).fit
    assert found.alpha_interval is not None and found.alpha_interval.high is None and found.alpha > 2


# --- intervals ----------------------------------------------------------------------------------------------


class Coverage(NamedTuple):
    """Shares of simulated ladders whose intervals hold the truth, and how wide those of alpha are.

    Attributes:
        width: Mean width of alpha's intervals, as a multiple of that of perfect ones.
    """

    alpha: float
    bands: float
    ratio: float
    width: float


def simulate(floor: float | None, *, scatter: float = 0.0, num: int = 120) -> Coverage:
    rng = np.random.default_rng(5)
    alphas, widths, held = [], [], []
    for _ in range(num):
        one = ladder(rng, floor, scatter=scatter)
        other = ladder(rng, floor, times=3, scatter=scatter, stream=1)
        found = one.fit.alpha_interval
        assert found is not None and found.low is not None
        bands = [holds(p.band, float(planted(np.array([p.cost]))[0])) for p in one.fit.curve if p.inside]
        compared = compare("a", one, "b", other, "NE")
        ratios = [holds(level.interval, 3.0) for level in compared.levels]
        alphas.append(one.fit.alpha)
        widths.append((found.high or 2 * one.fit.alpha) - found.low)
        held.append((holds(found, ALPHA), np.mean(bands), np.mean(ratios) if ratios else np.nan))
    shares = np.nanmean(np.array(held, dtype=float), axis=0)
    return Coverage(*shares, width=float(np.mean(widths) / (2 * 1.96 * np.std(alphas))))


@pytest.mark.parametrize("floor", [FLOOR, None])
def test_intervals_hold_the_truth_as_often_as_they_say(floor: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 300)
    found = simulate(floor)
    assert found.alpha >= 0.93 and found.bands >= 0.93 and found.ratio >= 0.93
    assert 1 <= found.width <= 1.8  # that there is no scatter, five sizes cannot tell


@pytest.mark.parametrize("scatter", [0.6, 2.0])
def test_scatter_that_seeds_do_not_explain_is_in_the_intervals(scatter: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seeds alone they would be two thirds and a quarter as wide as they have to be."""
    monkeypatch.setattr(module, "DRAWS", 300)
    found = simulate(FLOOR, scatter=scatter * NOISE)
    assert found.alpha >= 0.88 and found.bands >= 0.88 and found.ratio >= 0.9


def test_a_size_to_spare_is_enough_to_resolve_a_fall() -> None:
    """A law that misses three sizes by twice the seeds' noise still falls."""
    means = planted(COSTS[:3]) + np.array([1, -2, 1]) * NOISE
    runs = [[mean - NOISE, mean, mean + NOISE] for mean in means]
    found = fit_law(list(COSTS[:3]), runs, FLOOR, (1e5, 1e7)).fit
    assert found.misfit is not None and found.misfit < 0.2 and found.resolved


def test_noise_is_told_by_what_there_is() -> None:
    rng = np.random.default_rng(2)
    alone = ladder(rng, FLOOR, num_seeds=1).fit
    assert alone.seed_sd is None and alone.misfit is None and alone.alpha_interval is not None
    assert alone.scatter_sd is not None and 0.3 * NOISE < alone.scatter_sd < 3 * NOISE
    exact = ladder(rng, None, costs=COSTS[:3]).fit
    assert exact.scatter_sd is None and exact.misfit is None and exact.alpha_interval is not None
    nothing = ladder(rng, None, costs=COSTS[:3], num_seeds=1).fit
    assert (nothing.seed_sd, nothing.scatter_sd, nothing.alpha_interval, nothing.resolved) == (None,) * 4
    assert all(point.band is None for point in nothing.curve)
    usual = [ladder(rng, FLOOR).fit for _ in range(20)]
    assert np.mean([fit.seed_sd for fit in usual]) == pytest.approx(NOISE, rel=0.2)
    assert all(fit.scatter_sd is not None and fit.scatter_sd < 2 * NOISE for fit in usual)
    off = ladder(rng, FLOOR, scatter=8 * NOISE).fit
    assert off.scatter_sd is not None and 3 * NOISE < off.scatter_sd < 20 * NOISE
    assert off.misfit is not None and off.misfit < 0.05


def test_a_spread_is_as_uncertain_as_its_few_seeds_make_it() -> None:
    rng = np.random.default_rng(6)
    for noise, which in ((Noise(3e-6, 3, 0.0, 0, 2.0), 0), (Noise(0.0, 0, 4e-6, 2, 1.0), 1)):
        drawn = noise.draw(rng, 20_000)[which]
        dof, total = (noise.seeds_dof, noise.seeds_sum) if which == 0 else (noise.law_dof, noise.law_sum)
        chi = total / drawn
        assert (chi.mean(), chi.var()) == (pytest.approx(dof, rel=0.05), pytest.approx(2 * dof, rel=0.1))
        assert not noise.draw(rng, 10)[1 - which].any()


def test_bands_are_extrapolated_only_where_it_is_said() -> None:
    found = ladder(np.random.default_rng(3), FLOOR).fit
    costs = [point.cost for point in found.curve]
    assert costs == sorted(costs) and len(set(costs)) == len(costs)
    assert (costs[0], costs[-1]) == (pytest.approx(COSTS[0] / 2), pytest.approx(COSTS[-1] * 2))
    inside = [point.cost for point in found.curve if point.inside]
    assert (inside[0], inside[-1]) == (pytest.approx(COSTS[0]), pytest.approx(COSTS[-1])) and len(inside) == 41
    assert all(p.band and holds(p.band, p.value) for p in found.curve)
    assert all(point.value == pytest.approx(found.at(point.cost)) for point in found.curve)


def test_undefined_draws_widen_an_interval() -> None:
    for num, is_bounded in ((1, True), (3, False)):  # of 101, of which 2.5 are left out on each side
        found = interval(np.concatenate([np.linspace(1, 2, 101 - num), [np.nan] * num]))
        assert (found.low is not None) == (found.high is not None) == is_bounded
    found = interval(np.linspace(1, 2, 101))
    assert found.low == pytest.approx(1.02) and found.high == pytest.approx(1.98)
    assert interval(np.array([1.0] * 90 + [np.inf] * 10)) == Interval(low=1.0, high=None)


# --- comparisons --------------------------------------------------------------------------------------------


def test_the_ratio_of_two_planted_laws() -> None:
    rng = np.random.default_rng(4)
    one, other = (ladder(rng, FLOOR, times=times, noise=1e-5, stream=stream) for stream, times in enumerate((1.0, 3.0)))
    found = compare("a", one, "b", other, "NE")
    assert (found.arch, found.other, found.obstacle) == ("a", "b", "")
    reached = (planted(COSTS[:1])[0], planted(COSTS[-1:], 3.0)[0])
    assert [level.value for level in found.levels] == pytest.approx(
        [reached[0], sum(reached) / 2, reached[1]], abs=1e-4
    )
    for level in found.levels:
        assert level.ratio == pytest.approx(3, rel=0.02) and holds(level.interval, 3.0)
        assert level.interval and level.interval.low and level.interval.high
        assert 2.8 < level.interval.low < level.interval.high < 3.2
    back = compare("b", other, "a", one, "NE")
    assert back.levels[1].ratio == pytest.approx(1 / found.levels[1].ratio)


def test_chances_of_two_architectures_are_independent() -> None:
    rng = np.random.default_rng(4)
    one, other = (ladder(rng, FLOOR, stream=stream) for stream in (0, 1))
    assert one.draws is not None and other.draws is not None
    assert abs(np.corrcoef(one.draws.alpha, other.draws.alpha)[0, 1]) < 0.1


def test_what_cannot_be_compared_says_why() -> None:
    rng = np.random.default_rng(5)
    one, far = ladder(rng, FLOOR, noise=1e-5), ladder(rng, FLOOR, times=1e4, noise=1e-5)
    found = compare("a", one, "b", far, "NE")
    assert found.levels == () and "no value was reached by both" in found.obstacle
    assert "NE of a goes from 0.8800 to 0.8543 and that of b from 1.6036 to" in found.obstacle
    flat = fit_law(list(COSTS), (0.86 + NOISE * rng.standard_normal((5, 3))).tolist(), FLOOR, (1e5, 1e8))
    assert flat.fit.resolved is False
    assert compare("a", one, "b", flat, "NE").obstacle == "NE of b does not fall with cost beyond chance"
