"""The synthetic ads world: the same each time, calibrated, and each effect only where it is said to be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from gemkit_adsworld.config import EFFECTS, AdsWorldConfig
from gemkit_adsworld.events import BLOCK_USERS, STREAMS, make_events, make_users
from gemkit_adsworld.recipe import AdsWorld
from gemkit_adsworld.tables import event_tables, example_tables, item_table, make_impressions
from gemkit_adsworld.truth import Impressions, signals
from gemkit_adsworld.world import ADS, START_S, World

from gemkit.cli.main import main
from gemkit.data.source import Stream
from gemkit.errors import GemkitError
from gemkit.metrics.floor import floor

OFF = dict.fromkeys(EFFECTS, 0.0)
SMALL = AdsWorldConfig(num_users=600, num_items=2000, num_advertisers=50, examples_per_user=10)


def events_of(config: AdsWorldConfig, **options: int) -> pa.Table:
    return pa.concat_tables(event_tables(World(config), **options)).unify_dictionaries()


def examples_of(config: AdsWorldConfig, **options: int) -> pa.Table:
    return pa.concat_tables(example_tables(World(config), **options)).unify_dictionaries()


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def sigmoid_inverse(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    return examples_of(SMALL)


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return events_of(SMALL)


# --- the same world -----------------------------------------------------------------------------------------


def test_same_seed_same_world_other_seed_another(events: pa.Table, examples: pa.Table) -> None:
    assert events_of(SMALL).equals(events)
    assert examples_of(SMALL).equals(examples)
    assert not examples_of(dataclasses.replace(SMALL, seed=2)).equals(examples)


@pytest.mark.parametrize("chunk_rows", [1, 997, 10**9])
def test_chunks_do_not_change_the_content(events: pa.Table, examples: pa.Table, chunk_rows: int) -> None:
    if chunk_rows == 1:
        pieces = event_tables(World(SMALL), chunk_rows=1)
        rows = pa.concat_tables(next(pieces) for _ in range(300))
        assert rows.num_rows == 300
        assert rows.to_pylist() == events.slice(0, 300).to_pylist()
        return
    again = list(event_tables(World(SMALL), chunk_rows=chunk_rows))
    assert chunk_rows > events.num_rows or max(t.num_rows for t in again) <= chunk_rows
    assert pa.concat_tables(again).to_pydict() == events.to_pydict()
    assert examples_of(SMALL, chunk_rows=chunk_rows).to_pydict() == examples.to_pydict()


def test_a_stream_starts_again_at_each_reading(tmp_path: Path) -> None:
    source = AdsWorld(SMALL).source(tmp_path)
    assert isinstance(source.events, Stream) and isinstance(source.examples, Stream)
    first, second = next(source.events.read()), next(source.events.read())
    assert first.equals(second)


def test_strengths_change_nothing_but_labels(events: pa.Table, examples: pa.Table) -> None:
    off = dataclasses.replace(SMALL, **OFF)
    assert events_of(off).equals(events)
    labels = ["click", "conversion", "delay_s", "click_truth", "conversion_truth"]
    assert examples_of(off).drop(labels).equals(examples.drop(labels))
    assert not examples_of(off)["click_truth"].equals(examples["click_truth"])


def test_memory_does_not_grow_with_the_world() -> None:
    def peak(num_users: int) -> int:
        world = World(dataclasses.replace(SMALL, num_users=num_users))
        tracemalloc.start()
        for _ in event_tables(world, chunk_rows=50_000):
            pass
        for _ in example_tables(world, chunk_rows=50_000):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20 * BLOCK_USERS) < 1.5 * peak(4 * BLOCK_USERS)


# --- a plausible world --------------------------------------------------------------------------------------


def test_events_are_by_user_and_time_and_lengths_within_bounds(events: pa.Table) -> None:
    user, time_s = column(events, "user"), column(events, "timestamp")
    assert (np.diff(user) >= 0).all()
    assert (np.diff(time_s)[np.diff(user) == 0] >= 0).all()
    counts = np.bincount(user)
    assert len(counts) == SMALL.num_users
    assert counts.min() >= SMALL.shortest_history and counts.max() <= SMALL.longest_history
    assert counts.mean() == pytest.approx(SMALL.mean_history, rel=0.15)
    assert set(events["stream"].to_pylist()) == set(STREAMS)


def test_no_item_is_shown_before_it_is_born(world: World, events: pa.Table, examples: pa.Table) -> None:
    for table in (events, examples):
        item = table["item"].fill_null(-1).to_numpy()
        day = world.day(column(table, "timestamp"))
        assert (world.item_birth[item[item >= 0]] <= day[item >= 0]).all()
    assert column(examples, "item_age_days").min() >= 0
    assert (world.item_advertiser[column(examples, "item")] >= 0).all()  # only ads are examples
    known = set(item_table(world)["item"].to_pylist())
    assert set(events["item"].to_pylist()) - {None} <= known


def test_items_are_shown_in_proportion_to_their_popularity(world: World) -> None:
    """Among those of a topic that are there on the day; half of the others are not born yet."""
    day, topic = world.config.history_days // 2, 3
    uniform = (np.arange(200_000) + 0.5) / 200_000
    days, topics = np.full(len(uniform), day), np.full(len(uniform), topic)
    shown = np.bincount(world.draw_items(ADS, topics, days, uniform), minlength=SMALL.num_items)
    there = (world.item_kind == ADS) & (world.item_topic == topic) & (world.item_birth <= day)
    expected = np.where(there, world.popularity, 0) / world.popularity[there].sum()
    assert np.abs(shown / len(uniform) - expected).max() < 1e-4


def test_labels_follow_the_truth_in_each_bin() -> None:
    table = examples_of(dataclasses.replace(SMALL, num_users=6000))
    click = column(table, "click") == 1
    for task, known in (("click", np.ones(len(click), bool)), ("conversion", click)):
        label = table[task].fill_null(0).to_numpy()[known]
        truth = column(table, f"{task}_truth")[known]
        edges = np.quantile(truth, np.linspace(0, 1, 11)[1:-1])
        which = np.searchsorted(edges, truth)
        for number in range(10):
            y, p = label[which == number], truth[which == number]
            assert abs(y.mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).mean() / len(p)), (task, number)
    assert 0.05 < click.mean() < 0.2
    assert 0.1 < table["conversion"].drop_null().to_numpy().mean() < 0.3
    assert table["conversion"].null_count == (~click).sum()


def test_delays_are_exponential_by_advertiser_and_late_conversions_unseen() -> None:
    config = dataclasses.replace(SMALL, num_users=6000, num_advertisers=5, click_rate=0.4, conversion_rate=0.6)
    world, table = World(config), examples_of(config)
    advertiser = world.item_advertiser[column(table, "item")]
    delay_s = table["delay_s"].fill_null(-1.0).to_numpy()
    converted = table["conversion"].fill_null(0).to_numpy() == 1
    assert ((delay_s >= 0) == converted).all()
    for number in range(5):
        of = delay_s[converted & (advertiser == number)]
        assert of.mean() == pytest.approx(world.mean_delay_s[number], rel=5 / np.sqrt(len(of)))
        assert of.std() == pytest.approx(of.mean(), rel=0.15)
    seen = examples_of(dataclasses.replace(config, attribution_s=43_200.0))
    late = converted & (delay_s > 43_200)
    assert late.any()
    assert ((seen["conversion"].fill_null(0).to_numpy() == 1) == (converted & ~late)).all()
    clicked = column(seen, "click") == 1
    truth, label = column(seen, "conversion_truth")[clicked], seen["conversion"].drop_null().to_numpy()
    assert abs(truth.mean() - label.mean()) < 4 * np.sqrt(0.25 / len(label))


# --- the effects --------------------------------------------------------------------------------------------


def test_each_strength_moves_the_truth_by_its_own_signal() -> None:
    """The difference of two worlds' logits is the strength times the signal, and a constant."""
    config = dataclasses.replace(SMALL, num_users=100)
    for effect in EFFECTS:
        on = dataclasses.replace(config, **OFF | {effect: 1.5})
        world = World(on)
        users = make_users(world, 0)
        events = make_events(world, users)
        signal = signals(world, users, events, make_impressions(world, users, events))[effect]
        one, none = (
            sigmoid_inverse(column(examples_of(c), "click_truth")) for c in (on, dataclasses.replace(on, **OFF))
        )
        rest = one - none - 1.5 * signal
        assert rest.std() < 1e-9, effect
        assert signal.std() > 0.3, effect


class Block:
    """One block of a world, and what its impressions can see of the histories."""

    def __init__(self, config: AdsWorldConfig) -> None:
        self.world = World(config)
        self.users = make_users(self.world, 0)
        self.events = make_events(self.world, self.users)
        self.seen = make_impressions(self.world, self.users, self.events)
        self.first = self.events.starts[self.seen.owner]
        self.end = np.array(
            [
                start + np.searchsorted(self.events.time_s[start : self.events.starts[user + 1]], time)
                for start, user, time in zip(self.first, self.seen.owner, self.seen.time_s, strict=True)
            ]
        )

    def signals(self) -> dict[str, np.ndarray]:
        return signals(self.world, self.users, self.events, self.seen)


@pytest.fixture(scope="module")
def block() -> Block:
    return Block(SMALL)


@pytest.mark.parametrize(("stream", "beyond"), [("search", 20), ("follow", 200)])
def test_marks_stand_only_beyond_the_newest_events(block: Block, stream: str, beyond: int) -> None:
    kind = STREAMS.index(stream)
    found = 0
    for start, end in zip(block.first, block.end, strict=True):
        history = block.events.stream[start:end]
        assert not (history[max(0, len(history) - beyond) :] == kind).any()
        found += (history == kind).any()
    assert found > 0.3 * len(block.end)


@pytest.mark.parametrize(("effect", "stream"), [("old_events", "search"), ("ancient_events", "follow")])
def test_marks_tell_their_signal(block: Block, effect: str, stream: str) -> None:
    """A naive reading of the history: the topic of any search in it, against the ad's."""
    signal, kind = block.signals()[effect], STREAMS.index(stream)
    for number, (start, end) in enumerate(zip(block.first, block.end, strict=True)):
        topics = set(block.events.intent[start:end][block.events.stream[start:end] == kind].tolist())
        assert len(topics) <= 1
        ad = block.world.item_topic[block.seen.item[number]]
        expected = sum(np.sqrt(2) * np.cos(2 * np.pi * (ad - topic) / SMALL.num_topics) for topic in topics)
        assert signal[number] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("effect", ["old_events", "ancient_events"])
def test_recent_events_say_nothing_about_the_marks(effect: str) -> None:
    """The mark's topic is independent of what the newest 20 events are about, and of the user's attributes."""
    block = Block(dataclasses.replace(SMALL, num_users=BLOCK_USERS, num_topics=4))
    topic = block.users.search_topic if effect == "old_events" else block.users.follow_topic
    totals = np.zeros((4, 4))
    for user in range(len(block.users)):
        start, end = block.events.starts[user], block.events.starts[user + 1]
        item = block.events.item[start:end][-20:]
        about = np.bincount(block.world.item_topic[item[item >= 0]], minlength=4)
        totals[topic[user]] += about / max(1, about.sum())
    share = totals / totals.sum(axis=1, keepdims=True)
    # 64 users a row, one user's share has a deviation of .3: the matched cell is no larger than the others.
    assert abs(np.diag(share).mean() - 0.25) < 4 * 0.3 / np.sqrt(BLOCK_USERS)


def test_both_ways_of_a_journey_hold_the_same_events(block: Block) -> None:
    """At each impression, the steps of journeys in the whole history are in equal number, whichever way they went."""
    kinds = [STREAMS.index(name) for name in ("research", "compare", "price_check")]
    signal = block.signals()["order"]
    newest_first = []
    for start, end in zip(block.first, block.end, strict=True):
        history = block.events.stream[start:end]
        counts = [int((history == kind).sum()) for kind in kinds]
        assert counts[0] == counts[1] == counts[2]
        steps = history[np.isin(history, kinds)]
        newest_first.append(steps[-1] if len(steps) else -1)
    # A naive reading of the order: the newest step is the price (forward), the research (backward), or there is none.
    naive = np.select([np.array(newest_first) == kinds[2], np.array(newest_first) == kinds[0]], [1.0, -1.0], 0.0)
    assert (naive == signal).all()
    assert 0.35 < (signal > 0).mean() < 0.65


def test_interest_is_a_naive_mean_over_the_newest_20(block: Block) -> None:
    angle = block.world.angle[block.world.item_topic]
    signal = block.signals()["interest"]
    for number in range(0, len(block.end), 37):
        start, end = max(block.first[number], block.end[number] - 20), block.end[number]
        item = block.events.item[start:end]
        cosines = np.cos(angle[item] - angle[block.seen.item[number]])[item >= 0]
        assert signal[number] == pytest.approx(2.5 * cosines.sum() / (end - start), abs=1e-9)


def test_the_same_history_means_the_opposite_for_the_other_plan(block: Block) -> None:
    found = block.signals()
    plan = block.users.plan[block.seen.owner]
    assert np.allclose(found["event_x_user"][plan == 0], found["interest"][plan == 0])
    assert np.allclose(found["event_x_user"][plan == 1], -found["interest"][plan == 1])


def test_which_topic_stands_on_which_surface(block: Block) -> None:
    """A naive mean over the newest 20; neither the topics alone nor the surfaces alone say anything."""
    world, found = block.world, block.signals()
    angle, signal = world.angle[world.item_topic], found["event_pair_x_user"]
    plan = block.users.plan[block.seen.owner]
    for number in range(0, len(block.end), 37):
        start, end = max(block.first[number], block.end[number] - 20), block.end[number]
        item, surface = block.events.item[start:end], block.events.surface[start:end]
        near = np.cos(angle[item] - angle[block.seen.item[number]]) * world.surface_sign[surface]
        sign = 1 if plan[number] == 0 else -1
        assert signal[number] == pytest.approx(7.3 * sign * near[item >= 0].sum() / (end - start), abs=1e-9)
    assert signal.std() == pytest.approx(1, abs=0.15)
    for other in ("interest", "event_x_user"):
        assert abs(np.corrcoef(signal, found[other])[0, 1]) < 0.1
    alone = Block(dataclasses.replace(SMALL, num_surfaces=1)).signals()["event_pair_x_user"]
    assert (alone == 0).all()


def explained(signal: np.ndarray, *codes: np.ndarray) -> float:
    """Share of the variance that the means by the codes together explain, less what chance would."""
    group = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].ravel()
    means = np.bincount(group, signal) / np.bincount(group)
    return float((means[group].var() / signal.var()) - (group.max() + 1) / len(signal))


def test_pair_lies_in_two_features_together() -> None:
    block = Block(dataclasses.replace(SMALL, num_users=256, examples_per_user=100, num_items=20_000))
    signal = block.signals()["pair"]
    country = block.users.country[block.seen.owner]
    vertical = block.world.vertical[block.world.item_advertiser[block.seen.item]]
    assert explained(signal, country, vertical) > 0.95
    assert explained(signal, country) < 0.03 and explained(signal, vertical) < 0.03


def test_quad_lies_in_four_features_with_a_part_in_pairs() -> None:
    block = Block(dataclasses.replace(SMALL, num_users=256, examples_per_user=100, num_items=20_000))
    signal = block.signals()["quad"]
    item, owner = block.seen.item, block.seen.owner
    codes = {
        "age": block.users.age[owner],
        "device": block.users.device[owner],
        "format": block.world.item_format[item],
        "price": block.world.item_price[item],
    }
    assert explained(signal, *codes.values()) > 0.95
    assert 0.1 < explained(signal, codes["age"], codes["format"]) < 0.35
    assert 0.1 < explained(signal, codes["device"], codes["price"]) < 0.35
    for name in codes:
        assert explained(signal, codes[name]) < 0.06, name
    without_age = explained(signal, codes["device"], codes["format"], codes["price"])
    assert without_age < 0.4


def test_private_says_nothing_where_surfaces_share_a_weight() -> None:
    block = Block(dataclasses.replace(SMALL, num_users=256, examples_per_user=100, num_items=20_000))
    found, surface = block.signals(), block.seen.surface
    direction = block.world.item_private[block.seen.item]
    assert abs(np.corrcoef(direction, found["private"])[0, 1]) < 0.05
    for number in range(SMALL.num_surfaces):
        here = surface == number
        assert abs(np.corrcoef(direction[here], found["private"][here])[0, 1]) > 0.99
        assert np.allclose(found["shared"][here], block.world.item_shared[block.seen.item[here]])


def test_what_is_shown_does_not_depend_on_the_users_interest(block: Block) -> None:
    """Else the choice of the ad would tell about the history."""
    angle = block.world.angle[block.world.item_topic[block.seen.item]]
    theta = block.users.theta[block.seen.owner, block.world.day(block.seen.time_s)]
    assert abs(np.cos(angle - theta).mean()) < 4 / np.sqrt(2 * len(block.users))


def test_drift_turns_a_topic_from_good_to_bad() -> None:
    config = dataclasses.replace(SMALL, **OFF | {"drift": 1.0}, num_users=300, examples_per_user=40)
    table, world = examples_of(config), World(config)
    logit, topic = sigmoid_inverse(column(table, "click_truth")), world.item_topic[column(table, "item")]
    day = (column(table, "timestamp") - START_S) // 86_400
    first, last = (np.array([logit[(topic == k) & of].mean() for k in range(16)]) for of in (day < 2, day >= 12))
    assert np.corrcoef(first, last)[0, 1] < -0.5


def test_the_page_shows_what_was_measured() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "benchmarks" / "adsworld_switches.py"), "--table"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(table.splitlines()) == 13
    assert table in (root / "docs" / "adsworld.md").read_text(encoding="utf-8")


def test_impossible_worlds_are_refused() -> None:
    with pytest.raises(GemkitError, match="longest_history"):
        AdsWorldConfig(shortest_history=20, longest_history=10)
    with pytest.raises(GemkitError, match="one request"):
        AdsWorldConfig(examples_per_user=1, ads_per_request=2)
    with pytest.raises(GemkitError, match="topics"):
        AdsWorldConfig(num_items=100)


def test_each_world_has_its_own_folder() -> None:
    assert AdsWorldConfig().folder_name == AdsWorldConfig(max_history=7, root="x").folder_name == "adsworld"
    names = {AdsWorldConfig(seed=seed, order=order).folder_name for seed in (1, 2) for order in (0.0, 0.1)}
    assert len(names) == 4


def test_a_world_of_one_surface_one_request_and_few_events() -> None:
    config = dataclasses.replace(
        SMALL, num_users=3, num_surfaces=1, examples_per_user=1, ads_per_request=1, shortest_history=1, mean_history=2
    )
    world = World(config)
    table = examples_of(config)
    assert table.num_rows >= 3 and np.isfinite(column(table, "click_truth")).all()
    users = make_users(world, 0)
    assert isinstance(make_impressions(world, users, make_events(world, users)), Impressions)


def test_a_run_on_the_world_says_how_much_it_has_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From `data synth` to metrics.json: the floor that is printed, that of the run, and that of the tables agree."""
    words = [f"data.root={tmp_path / 'datasets'}", "data.num_users=300", "data.num_items=500", "data.max_history=64"]
    assert main(["data", "synth", *words]) == 0
    shown = capsys.readouterr().out
    run = ["data=adsworld", *words, "sequence=none", "cross=none", "train.max_steps=2", f"runs={tmp_path / 'runs'}"]
    assert main(["train", *run]) == 0
    file = next((tmp_path / "runs").glob("*/metrics.json"))
    test = json.loads(file.read_text(encoding="utf-8"))["test"]

    table = examples_of(AdsWorldConfig(num_users=300, num_items=500))
    day = (column(table, "timestamp") - START_S) / 86_400
    labels, truth = column(table, "click"), column(table, "click_truth")
    base_rate = float(labels[day < 0.8 * 14].mean())
    best = floor(truth[day >= 0.9 * 14], labels[day >= 0.9 * 14], base_rate=base_rate)
    assert test["click"]["ne_floor"] == pytest.approx(best["ne_floor"], rel=1e-9)
    assert test["click"]["auc_best"] == pytest.approx(best["auc_best"], rel=1e-9)
    assert test["click"]["learned"] == pytest.approx((1 - test["click"]["ne"]) / (1 - best["ne_floor"]), rel=1e-9)
    assert f"{best['ne_floor']:.4f}" in shown
    assert {"ne_floor", "auc_best", "learned"} <= test["conversion"].keys()
    capsys.readouterr()
    assert main(["evaluate", str(file.parent)]) == 0
    assert "share learned" in capsys.readouterr().out
