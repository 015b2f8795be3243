"""A block of users and their events: what they browse, and the marks and journeys that stand among it."""

from __future__ import annotations

import dataclasses

import numpy as np

from gemkit_adsworld.sampling import generator, runs
from gemkit_adsworld.world import (
    ADS,
    NUM_AGES,
    NUM_COUNTRIES,
    NUM_DEVICES,
    NUM_GENDERS,
    NUM_PLANS,
    POSTS,
    START_S,
    World,
)

BLOCK_USERS = 256
"""Users that are made together. A part of the world's definition: each block has random streams of its own."""

STREAMS = ("view", "engage", "click", "purchase", "search", "follow", "research", "compare", "price_check")
VIEW, ENGAGE, CLICK, PURCHASE, SEARCH, FOLLOW, RESEARCH, COMPARE, PRICE_CHECK = range(len(STREAMS))
BROWSING = (0.65, 0.82, 0.95)
"""Where, of the events that are only browsing, engage, click and purchase begin."""

RECENT = 20
OLD_FROM, OLD_TO = 20, 100
ANCIENT_FROM, ANCIENT_TO = 200, 400
"""Events before the first day with examples, counted back from it from 0, among which searches and follows stand."""

JOURNEY = (RESEARCH, RESEARCH, COMPARE, COMPARE, PRICE_CHECK, PRICE_CHECK)
"""A journey forward. Backward it is the same events in the opposite order."""
JOURNEY_EVERY_DAYS, JOURNEY_STEP_DAYS = 7.0, 0.5
WALK = 0.15
"""Radians by which an interest moves in a day, standard deviation."""


@dataclasses.dataclass(frozen=True)
class Users:
    """A block of users. Shape of each array but `theta`: (users,)."""

    first: int
    count: np.ndarray
    country: np.ndarray
    age: np.ndarray
    gender: np.ndarray
    device: np.ndarray
    plan: np.ndarray
    search_topic: np.ndarray
    follow_topic: np.ndarray
    theta: np.ndarray
    """(users, days), radians: the drifting interest."""

    def __len__(self) -> int:
        return len(self.count)


@dataclasses.dataclass(frozen=True)
class Journeys:
    """All journeys of a block, by user and time.

    Attributes:
        owner: User within the block.
        start_s, end_s: First and last event.
        forward: Whether it goes from research to the price.
    """

    owner: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    forward: np.ndarray


@dataclasses.dataclass(frozen=True)
class Events:
    """All events of a block, by user and time.

    Attributes:
        starts: (users + 1,), where each user's begin.
        owner: User within the block.
        item: -1 where the event is about no item.
        intent: Topic of a search, a follow or a step of a journey, else -1.
    """

    starts: np.ndarray
    owner: np.ndarray
    time_s: np.ndarray
    stream: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    intent: np.ndarray
    journeys: Journeys


def make_users(world: World, block: int) -> Users:
    """The users of a block; the last block may hold fewer."""
    config = world.config
    rng = generator(config.seed, "users", block)
    n = BLOCK_USERS
    mean_log = np.log(config.mean_history) - config.sigma**2 / 2
    count = np.exp(mean_log + config.sigma * rng.standard_normal(n)).round()
    steps = rng.standard_normal((n, world.total_days)) * WALK
    steps[:, 0] = rng.random(n) * 2 * np.pi
    columns = {
        "count": np.clip(count, config.shortest_history, config.longest_history).astype(np.int64),
        "country": rng.choice(NUM_COUNTRIES, size=n, p=world.country_share),
        "age": rng.integers(NUM_AGES, size=n),
        "gender": rng.integers(NUM_GENDERS, size=n),
        "device": rng.integers(NUM_DEVICES, size=n),
        "plan": rng.integers(NUM_PLANS, size=n),
        "search_topic": rng.integers(config.num_topics, size=n),
        "follow_topic": rng.integers(config.num_topics, size=n),
        "theta": np.cumsum(steps, axis=1),
    }
    first = block * BLOCK_USERS
    here = min(n, config.num_users - first)
    return Users(first=first, **{name: values[:here] for name, values in columns.items()})


def make_events(world: World, users: Users) -> Events:
    """The events of a block of users. They depend on no strength, and on no label."""
    config = world.config
    rng = generator(config.seed, "events", users.first // BLOCK_USERS)
    starts, owner, index = runs(users.count)
    n = len(owner)
    time_s = world.seconds(_sorted_uniforms(rng, starts, owner), 0)
    day = world.day(time_s)
    stream = np.searchsorted(BROWSING, rng.random(n, np.float32), side="right").astype(np.int8)
    topic = world.browsed_topics(users.theta[owner, day], day, rng.random(n))
    item = world.draw_items(np.where(stream >= CLICK, ADS, POSTS), topic, day, rng.random(n))
    surface = np.searchsorted(np.cumsum(world.surface_share)[:-1], rng.random(n, np.float32), side="right")
    intent = np.full(n, -1, np.int64)

    before = np.bincount(owner, time_s < START_S, minlength=len(users)).astype(np.int64)
    age = before[owner] - 1 - index  # 0 is the newest before the examples begin
    for low, high, kind, topics in (
        (OLD_FROM, OLD_TO, SEARCH, users.search_topic),
        (ANCIENT_FROM, ANCIENT_TO, FOLLOW, users.follow_topic),
    ):
        marks = np.flatnonzero((age >= low) & (age < high) & (age % 2 == 0))
        stream[marks], intent[marks], item[marks] = kind, topics[owner[marks]], -1
    journeys = _make_journeys(world, users, starts, time_s, stream, intent, item)
    return Events(starts, owner, time_s, stream, item, surface, intent, journeys)


def _sorted_uniforms(rng: np.random.Generator, starts: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """For each owner its uniform numbers in ascending order, by their spacings: nothing has to be sorted."""
    counts = np.diff(starts)
    spacing = rng.standard_exponential(len(owner))
    after = rng.standard_exponential(len(counts))
    total = np.concatenate([[0.0], np.cumsum(spacing)])
    base = total[starts[:-1]]
    span = total[starts[1:]] - base + after
    uniform: np.ndarray = np.clip((total[1:] - base[owner]) / span[owner], 0.0, np.nextafter(1.0, 0.0))
    return uniform


def _make_journeys(
    world: World,
    users: Users,
    starts: np.ndarray,
    time_s: np.ndarray,
    stream: np.ndarray,
    intent: np.ndarray,
    item: np.ndarray,
) -> Journeys:
    """Turns events into journeys, in place: six events some steps apart, again and again; each way is as likely."""
    rng = generator(world.config.seed, "journeys", users.first // BLOCK_USERS)
    per_day = users.count / world.total_days
    step = np.maximum(1, np.round(per_day * JOURNEY_STEP_DAYS)).astype(np.int64)
    length = (len(JOURNEY) - 1) * step
    every = np.maximum(2 * len(JOURNEY) * step, np.round(per_day * JOURNEY_EVERY_DAYS).astype(np.int64))
    offset = (rng.random(len(users)) * every).astype(np.int64)
    counts = np.maximum(0, (users.count - offset - length - 1) // every + 1)
    _, owner, number = runs(counts)
    forward = rng.random(len(owner)) < 0.5
    topic = rng.integers(world.config.num_topics, size=len(owner))
    first = starts[owner] + offset[owner] + number * every[owner]
    position = first[:, None] + np.arange(len(JOURNEY)) * step[owner][:, None]
    way = np.array(JOURNEY, np.int8)
    stream[position] = np.where(forward[:, None], way, way[::-1])
    intent[position] = topic[:, None]
    item[position] = -1
    return Journeys(owner, time_s[position[:, 0]], time_s[position[:, -1]], forward)
