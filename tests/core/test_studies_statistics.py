"""Intervals that hold the truth as often as they say, and what they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemkit.errors import GemkitError
from gemkit.metrics import functional as M
from gemkit.runs.predictions import Predictions
from gemkit.studies import statistics as S
from gemkit.studies.bootstrap import check_same, resample


def predictions(logits: np.ndarray, seed: int = 0, **changes: Any) -> Predictions:
    """Labels that follow from the examples alone, and these logits. Shape: (N, P)."""
    rng = np.random.default_rng(seed)
    shape = logits.shape
    made = Predictions(
        tasks=tuple(f"task{p}" for p in range(shape[1])),
        example_id=np.arange(shape[0]) * 3,
        logits=logits.astype(np.float32),
        labels=rng.random(shape) < 0.4,
        masks=rng.random(shape) < 0.8,
        weights=rng.choice([0.0, 0.5, 2.0], shape[0]).astype(np.float32),
        group=rng.integers(0, 25, shape[0]),
    )
    return made._replace(**changes)


# --- Student's t --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dof", "quantile"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (9, 2.26216),
        (10, 2.22814),
        (30, 2.04227),
        (120, 1.97993),
    ],
)
def test_quantiles_of_t(dof: int, quantile: float) -> None:
    assert S.t_quantile(dof) == pytest.approx(quantile, abs=6e-6)


def test_quantiles_of_t_come_down_to_the_normal_one() -> None:
    values = [S.t_quantile(dof) for dof in (1, 2, 3, 5, 50, 500, 1000, 1001, 5000, 10**6)]
    assert values == sorted(values, reverse=True)
    assert S.t_quantile(1000) == pytest.approx(S.t_quantile(1001), abs=1e-5)
    assert values[-1] == pytest.approx(S.NORMAL_95, abs=1e-5)


# --- differences --------------------------------------------------------------------------------------------


def test_a_difference_by_hand() -> None:
    found = S.difference("auc", S.score([0.71, 0.74, 0.72]), S.score([0.70, 0.71, 0.70]), examples_part=0.003)
    assert found is not None
    sd = 0.01  # of 0.01, 0.03, 0.02
    seeds_part = 4.30265 * sd / 3**0.5
    half = (seeds_part**2 + 0.003**2) ** 0.5
    assert found.mean == pytest.approx(0.02)
    assert (found.low, found.high) == (pytest.approx(0.02 - half, abs=1e-6), pytest.approx(0.02 + half, abs=1e-6))
    assert found.seeds_part == pytest.approx(seeds_part, abs=1e-6)
    assert found.relative == pytest.approx(0.02 / (2.11 / 3))
    assert (found.verdict, found.num_seeds) == ("not resolved", 3)
    # With four seeds: t is 3.18245, and 3.18245 * 0.01 / 2 = 0.0159 is below 0.02.
    assert found.seeds_needed == 4


@pytest.mark.parametrize(("metric", "verdict"), [("auc", "better"), ("ne", "worse"), ("logloss", "worse")])
def test_which_way_is_better(metric: str, verdict: str) -> None:
    higher, lower = S.score([0.8, 0.81, 0.79]), S.score([0.7, 0.71, 0.69])
    found = S.difference(metric, higher, lower, 0.001)
    assert found is not None and found.verdict == verdict and found.seeds_needed == 2
    back = S.difference(metric, lower, higher, 0.001)
    assert back is not None and back.verdict == {"better": "worse", "worse": "better"}[verdict]


def test_only_seeds_that_both_have_are_paired() -> None:
    found = S.difference("auc", S.score([0.9, None, 0.8, None]), S.score([0.5, 0.1, None, None]), None)
    assert found is not None
    assert (found.num_seeds, found.mean, found.low, found.verdict) == (1, pytest.approx(0.4), None, "not resolved")
    assert (found.seeds_part, found.examples_part, found.seeds_needed) == (None, None, None)
    assert S.difference("auc", S.score([0.9, None]), S.score([None, 0.5]), None) is None


def test_scores() -> None:
    assert S.score([0.1, None, 0.3]) == S.Score(
        by_seed=(0.1, None, 0.3), mean=pytest.approx(0.2), sd=pytest.approx(0.02**0.5)
    )
    assert (S.score([0.5]).sd, S.score([None]).mean) == (None, None)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0, 3.0, 20.0])
def test_seeds_needed_is_the_least_number(ratio: float) -> None:
    needed = S.seeds_needed(1.0, ratio, 0.3)
    assert needed is not None and needed > 1
    assert S.half_width(needed, ratio, 0.3) < 1.0
    assert needed == 2 or S.half_width(needed - 1, ratio, 0.3) >= 1.0


def test_no_number_of_seeds_makes_a_test_split_larger() -> None:
    assert S.seeds_needed(0.01, 0.001, examples_part=0.0101) is None
    assert S.seeds_needed(0.0, 0.001, examples_part=0.0) is None
    assert S.seeds_needed(1e-6, 1.0, examples_part=0.0) is None  # more than anybody would run


# --- coverage -----------------------------------------------------------------------------------------------

NUM_STUDIES, NUM_EXAMPLES = 800, 60


def coverage(num_seeds: int, seed_sd: float, example_sd: float) -> tuple[float, float]:
    """Shares of simulated studies whose interval holds the true difference, 0: ours, and two-level percentiles.

    Example i of seed s differs by u_s + a_i + noise: u is the seed's, a the example's, whatever the seed.
    """
    rng = np.random.default_rng(7)
    ours = percentile = 0
    for _ in range(NUM_STUDIES):
        u = rng.normal(0, seed_sd, (num_seeds, 1))
        a = rng.normal(0, example_sd * NUM_EXAMPLES**0.5, NUM_EXAMPLES)
        by_example = u + a + rng.normal(0, example_sd, (num_seeds, NUM_EXAMPLES))
        drawn = rng.multinomial(NUM_EXAMPLES, np.full(NUM_EXAMPLES, 1 / NUM_EXAMPLES), size=200)
        moved = drawn @ by_example.T / NUM_EXAMPLES  # (resamples, seeds)
        by_seed = by_example.mean(1)
        part = S.NORMAL_95 * moved.mean(1).std(ddof=1)
        ours += abs(by_seed.mean()) <= S.half_width(num_seeds, by_seed.std(ddof=1), part)
        seeds = rng.integers(num_seeds, size=(200, num_seeds))
        low, high = np.quantile(np.take_along_axis(moved, seeds, axis=1).mean(1), [0.025, 0.975])
        percentile += low <= 0 <= high
    return ours / NUM_STUDIES, percentile / NUM_STUDIES


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "example_sd", "percentile_below"),
    [(3, 1.0, 0.1, 0.80), (3, 1.0, 0.6, 0.92), (3, 0.1, 1.0, 1.0), (5, 1.0, 0.3, 0.92)],
)
def test_intervals_cover_what_they_say(
    num_seeds: int, seed_sd: float, example_sd: float, percentile_below: float
) -> None:
    ours, percentile = coverage(num_seeds, seed_sd, example_sd)
    error = 3 * (0.95 * 0.05 / NUM_STUDIES) ** 0.5
    assert 0.95 - error <= ours <= 0.985
    assert percentile < min(percentile_below, ours)


# --- resampled metrics --------------------------------------------------------------------------------------


def test_resamples_are_the_metrics_of_the_examples_drawn() -> None:
    rng = np.random.default_rng(3)
    logits = [np.round(rng.normal(size=(200, 2)), 1), rng.normal(size=(200, 2))]  # the first with many ties
    runs = [predictions(z) for z in logits]
    found = resample(runs, resamples=5)
    again = np.random.default_rng(0)
    for r in range(5):
        counts = np.bincount(again.integers(200, size=200), minlength=200)
        for p, task in enumerate(runs[0].tasks):
            for i, run in enumerate(runs):
                keep = run.masks[:, p]
                z, y, w = (
                    torch.from_numpy(x[keep].astype(np.float64))
                    for x in (run.logits[:, p], run.labels[:, p], counts * run.weights)
                )
                assert found[task]["auc"][r, i] == pytest.approx(M.auc(z, y, w), abs=1e-12)
                assert found[task]["logloss"][r, i] == pytest.approx(M.logloss(z, y, w), abs=1e-12)


def test_the_spread_is_that_of_the_mean() -> None:
    n = 2000
    z = np.random.default_rng(5).normal(size=(n, 1))
    run = predictions(z, masks=np.ones((n, 1), bool), weights=np.ones(n, np.float32))
    y = run.labels[:, 0]
    logits = run.logits[:, 0].astype(np.float64)
    losses = np.logaddexp(0, logits) - y * logits
    found = resample([run], resamples=600)["task0"]["logloss"][:, 0]
    assert found.mean() == pytest.approx(losses.mean(), abs=4 * losses.std() / n**0.5 / 600**0.5)
    assert found.std() == pytest.approx(losses.std() / n**0.5, rel=0.1)


def test_groups_are_drawn_whole() -> None:
    """Ten copies of each example are no more information than one, if they are drawn together."""
    n, copies = 300, 10
    z = np.random.default_rng(5).normal(size=(n, 1))
    one = predictions(z, masks=np.ones((n, 1), bool), weights=np.ones(n, np.float32), group=np.arange(n) % 300)
    many = Predictions(one.tasks, np.arange(n * copies), *(np.repeat(x, copies, axis=0) for x in one[2:]))
    for metric in ("auc", "logloss"):
        alone, together, apart = (
            resample([run], 300, by)["task0"][metric].std()
            for run, by in ((one, "examples"), (many, "groups"), (many, "examples"))
        )
        assert together == pytest.approx(alone, rel=0.2)
        assert apart < alone / 2
    with pytest.raises(GemkitError, match="no groups to draw from"):
        resample([one._replace(group=np.zeros(n, np.int64))], 10, "groups")


def test_runs_are_resampled_alike() -> None:
    """The chance of the examples that two runs share is not in their difference."""
    z = np.random.default_rng(6).normal(size=(500, 1))
    near = z + 0.01 * np.random.default_rng(7).normal(size=z.shape)
    drawn = resample([predictions(z), predictions(z), predictions(near)], 200)["task0"]["auc"]
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    assert (drawn[:, 2] - drawn[:, 0]).std() < drawn[:, 0].std() / 10


def test_a_resample_without_a_class_has_no_auc() -> None:
    labels = np.zeros((40, 1), bool)
    labels[0] = True
    run = predictions(
        np.arange(40.0)[:, None], labels=labels, masks=np.ones((40, 1), bool), weights=np.ones(40, np.float32)
    )
    drawn = resample([run], 200)["task0"]["auc"]
    assert 0 < np.isnan(drawn).sum() < 200


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("examples", {"example_id": np.arange(50) + 1}),
        ("labels", {"labels": np.ones((50, 1), bool)}),
        ("masks", {"masks": np.zeros((50, 1), bool)}),
        ("weights", {"weights": np.ones(50, np.float32) * 7}),
        ("tasks", {"tasks": ("other",)}),
    ],
)
def test_other_examples_cannot_be_paired(what: str, change: dict[str, Any]) -> None:
    run = predictions(np.zeros((50, 1)))
    check_same([("a", run), ("b", run._replace(logits=run.logits + 1))])
    with pytest.raises(GemkitError, match=f"the runs a and c have other test {what}"):
        check_same([("a", run), ("b", run), ("c", run._replace(**change))])
