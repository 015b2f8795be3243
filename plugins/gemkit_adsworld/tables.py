"""Blocks of the world as Arrow tables: a stream of events, a stream of examples with their truth, and the items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from gemkit_adsworld.events import BLOCK_USERS, STREAMS, Events, Users, make_events, make_users
from gemkit_adsworld.sampling import generator, runs
from gemkit_adsworld.truth import Impressions, probabilities, signals
from gemkit_adsworld.world import ADS, DAY_S, START_S, World

CHUNK_ROWS = 200_000
PAUSE_S = 3600
"""A request that would fall into a journey comes at most this long after it."""

COUNTRIES = ("US", "BR", "IN", "DE", "FR", "GB", "MX", "JP", "ES", "IT", "PL", "SE")
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
GENDERS = ("female", "male", "other")
DEVICES = ("android", "ios", "desktop", "tablet")
PLANS = ("free", "plus")
FORMATS = ("image", "video", "carousel", "text")


def event_tables(world: World, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """All events, user by user, each user's by time, in pieces of at most `chunk_rows`."""
    return _chunks(world, event_block, chunk_rows)


def example_tables(world: World, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """All impressions, user by user, in pieces of at most `chunk_rows`."""
    return _chunks(world, example_block, chunk_rows)


def _chunks(world: World, make: Callable[[World, int], pa.Table], chunk_rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for block in range(-(-world.config.num_users // BLOCK_USERS)):
        table = make(world, block)
        if waiting and sum(t.num_rows for t in waiting) + table.num_rows > chunk_rows:
            yield pa.concat_tables(waiting)
            waiting = []
        while table.num_rows > chunk_rows:
            yield table.slice(0, chunk_rows)
            table = table.slice(chunk_rows)
        waiting.append(table)
    yield pa.concat_tables(waiting)


def event_block(world: World, block: int) -> pa.Table:
    """The events of one block of users."""
    users = make_users(world, block)
    events = make_events(world, users)
    about = events.item >= 0
    advertiser = np.where(about, world.item_advertiser[events.item], -1)
    topics = world.config.num_topics
    intents = [f"{name}/{k}" for name in STREAMS[4:] for k in range(topics)]
    intent = np.where(events.intent >= 0, (events.stream - 4).astype(np.int64) * topics + events.intent, -1)
    return pa.table(
        {
            "user": users.first + events.owner,
            "timestamp": events.time_s,
            "stream": _text(events.stream, STREAMS),
            "item": _ids(events.item),
            "topic": _ids(np.where(about, world.item_topic[events.item], -1)),
            "advertiser": _ids(advertiser),
            "surface": _text(events.surface, world.surface_names),
            "intent": _text(intent, intents),
        }
    )


def example_block(world: World, block: int) -> pa.Table:
    """The impressions of one block of users, with labels, delays and truth."""
    config = world.config
    users = make_users(world, block)
    events = make_events(world, users)
    seen = make_impressions(world, users, events)
    p_click, p_conversion = probabilities(world, seen, signals(world, users, events, seen))
    rng = generator(config.seed, "labels", block)
    n = len(seen.owner)
    advertiser = world.item_advertiser[seen.item]
    click = rng.random(n) < p_click
    converted = click & (rng.random(n) < p_conversion)
    delay_s = rng.standard_exponential(n) * world.mean_delay_s[advertiser]
    if config.attribution_s is not None:
        converted &= delay_s <= config.attribution_s
        p_conversion = p_conversion * -np.expm1(-config.attribution_s / world.mean_delay_s[advertiser])
    since_s = seen.time_s - START_S
    age_days = world.day(seen.time_s) - world.item_birth[seen.item]
    return pa.table(
        {
            "user": users.first + seen.owner,
            "timestamp": seen.time_s,
            "item": pa.array(seen.item, pa.int32()),
            "surface": _text(seen.surface, world.surface_names),
            "position": pa.array(seen.position, pa.int16()),
            "hour": pa.array(since_s // 3600 % 24, pa.int8()),
            "weekday": pa.array(since_s // DAY_S % 7, pa.int8()),
            "item_age_days": age_days.astype(np.float32),
            "country": _text(users.country[seen.owner], COUNTRIES),
            "age": _text(users.age[seen.owner], AGES),
            "gender": _text(users.gender[seen.owner], GENDERS),
            "device": _text(users.device[seen.owner], DEVICES),
            "plan": _text(users.plan[seen.owner], PLANS),
            "click": click.astype(np.int8),
            "conversion": pa.array(converted.astype(np.int8), mask=~click),
            "delay_s": pa.array(delay_s.astype(np.float32), mask=~converted),
            "click_truth": p_click,
            "conversion_truth": p_conversion,
        }
    )


def make_impressions(world: World, users: Users, events: Events) -> Impressions:
    """Who is shown what, where and when. It depends on no strength, and not on the user's interest."""
    config = world.config
    rng = generator(config.seed, "requests", users.first // BLOCK_USERS)
    slots = config.ads_per_request
    _, owner, _ = runs(1 + rng.poisson(config.examples_per_user / slots - 1, len(users)))
    n = len(owner)
    time_s = _outside_journeys(world, events, owner, world.seconds(rng.random(n), config.history_days), rng.random(n))
    surface = np.searchsorted(np.cumsum(world.surface_share)[:-1], rng.random(n), side="right")
    owner, time_s, surface = (np.repeat(values, slots) for values in (owner, time_s, surface))
    day = world.day(time_s)
    topic = world.advertised_topics(surface, day, rng.random(n * slots))
    item = world.draw_items(ADS, topic, day, rng.random(n * slots))
    return Impressions(owner, time_s, item, surface, np.tile(np.arange(slots), n))


def _outside_journeys(
    world: World, events: Events, owner: np.ndarray, time_s: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """Times moved out of journeys, to shortly after them.

    Inside a journey the counts of its steps would tell which way it goes; the effect `order` is to lie in nothing
    but the order.
    """
    journeys = events.journeys
    if not len(journeys.owner):
        return time_s
    span = 1 << 34
    last = np.searchsorted(journeys.owner * span + journeys.start_s, owner * span + time_s) - 1
    inside = (last >= 0) & (journeys.owner[last] == owner) & (time_s <= journeys.end_s[last])
    next_s = np.append(journeys.start_s[1:], world.end_s)
    next_s[:-1][journeys.owner[1:] != journeys.owner[:-1]] = world.end_s
    end_s = journeys.end_s[last]
    pause_s = np.clip(next_s[last] - end_s - 1, 0, PAUSE_S)
    return np.where(inside, end_s + 1 + (uniform * pause_s).astype(np.int64), time_s)


def item_table(world: World) -> pa.Table:
    """Every ad and post with its features; posts have no advertiser, vertical, format or price."""
    ad = world.item_advertiser >= 0
    advertiser = world.item_advertiser
    width = world.config.content_width
    return pa.table(
        {
            "item": pa.array(np.arange(world.config.num_items), pa.int32()),
            "topic": _ids(world.item_topic),
            "advertiser": _ids(advertiser),
            "vertical": _ids(np.where(ad, world.vertical[advertiser], -1)),
            "format": _text(np.where(ad, world.item_format, -1), FORMATS),
            "price": _ids(np.where(ad, world.item_price, -1)),
            "content": pa.FixedSizeListArray.from_arrays(pa.array(world.content.ravel()), width),
        }
    )


def _ids(values: np.ndarray) -> pa.Array:
    """Whole numbers; negative ones are empty."""
    return pa.array(values.astype(np.int32), mask=values < 0)


def _text(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Names by number; negative ones are empty."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(names))
