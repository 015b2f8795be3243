"""What each effect adds to the logit, and from it the true probabilities.

Every effect is a signal of about variance 1 over the impressions, times its strength in the config:

* ``interest``: 2.5 times the mean, over the newest 20 events, of the cosine between the event's topic and the ad's on
  the circle of topics (0 for events that are about no item).
* ``pair``: a random sign matrix of country and vertical, without marginals: neither says anything alone.
* ``quad``: (s_age s_device s_format s_price + s_age s_format / 2 + s_device s_price / 2) / sqrt(1.5), with a sign for
  each value. Without the two products of order 2, gradient descent would hardly find the one of order 4.
* ``old_events``: sqrt(2) cos(angle between the ad's topic and the topic of the user's searches). Searches stand only
  before the first example's day, with at least 20 events after them; 0 for a user without any.
* ``ancient_events``: the same with follows, which have at least 200 events after them.
* ``order``: +1 if the user's last journey went from research over comparing to the price, -1 if it was the other way
  round, 0 before the first. Both ways hold the same events.
* ``event_x_user``: as ``interest``, times +1 or -1 by the user's `plan`.
* ``event_pair_x_user``: 7.3 times the mean, over the newest 20 events, of the same cosine times a weight of the event's
  surface; times +1 or -1 by the user's `plan`. The weights are those of ``private``. Which topics these events have and
  on which surfaces they stand does not tell it: it takes which topic stands on which surface. Of no effect with one.
* ``shared``: the noise of the content vector (which is 2 x the topic's centre + noise) along a hidden direction.
* ``private``: the noise along a second direction, times a weight of the surface; the weights have mean 0 over surfaces,
  so that a weight which all share says nothing. Of no effect with one surface.
* ``drift``: sqrt(2) cos(the ad's topic - an angle that turns once in 28 days).
* ``advertiser``: a normal number of each advertiser.
* ``seasonality``: sqrt(2) x 0.8 cos(hour from 20 h) + 0.6 x (weekend, standardised).
* ``position``: -log(1 + place in the request) times a slope of the surface, 0.5 to 1.5.

A click's logit is the sum over effects, a surface's own offset and a constant that makes the mean click rate about
what the config says. A conversion's logit (given the click) has another constant, an advertiser's own conversion
quality, ``order`` in full and half of all the others. With `attribution_s` its truth is that of a conversion *within*
that time: the probability times 1 - exp(-attribution_s / mean delay of the advertiser).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemkit_adsworld.events import FOLLOW, RECENT, SEARCH, Events, Users
from gemkit_adsworld.world import DAY_S, START_S, World

INTEREST_SCALE = 2.5
EVENT_PAIR_SCALE = 7.3
CONVERSION_SHARE = 0.5
DRIFT_PERIOD_DAYS = 28.0
WEEKEND = 2 / 7


@dataclasses.dataclass(frozen=True)
class Impressions:
    """The impressions of a block of users. Shape of each array: (impressions,).

    Attributes:
        owner: User within the block.
    """

    owner: np.ndarray
    time_s: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    position: np.ndarray


def signals(world: World, users: Users, events: Events, seen: Impressions) -> dict[str, np.ndarray]:
    """Effect -> what it adds to the logit at strength 1. Shape: (impressions,) float64."""
    owner, item, surface = seen.owner, seen.item, seen.surface
    angle = world.angle[world.item_topic[item]]
    advertiser = world.item_advertiser[item]
    age, device = world.signs["age"][users.age[owner]], world.signs["device"][users.device[owner]]
    form, price = world.signs["format"][world.item_format[item]], world.signs["price"][world.item_price[item]]
    near, near_by_surface = _near(world, events, seen, angle)
    interest = INTEREST_SCALE * near
    plan = np.where(users.plan[owner] == 0, 1.0, -1.0)
    since_s = seen.time_s - START_S
    hour, weekend = since_s % DAY_S / 3600, since_s // DAY_S % 7 >= 5
    return {
        "interest": interest,
        "pair": world.pair[users.country[owner], world.vertical[advertiser]],
        "quad": (age * device * form * price + (age * form + device * price) / 2) / np.sqrt(1.5),
        "old_events": _has(users, events, SEARCH)[owner] * _cosine(world, users.search_topic[owner], angle),
        "ancient_events": _has(users, events, FOLLOW)[owner] * _cosine(world, users.follow_topic[owner], angle),
        "order": _last_journey(world, events, seen),
        "event_x_user": interest * plan,
        "event_pair_x_user": EVENT_PAIR_SCALE * plan * near_by_surface,
        "shared": world.item_shared[item],
        "private": world.item_private[item] * world.surface_sign[surface],
        "drift": np.sqrt(2) * np.cos(angle - 2 * np.pi * since_s / (DRIFT_PERIOD_DAYS * DAY_S)),
        "advertiser": world.quality[advertiser],
        "seasonality": np.sqrt(2) * 0.8 * np.cos(2 * np.pi * (hour - 20) / 24)
        + 0.6 * (weekend - WEEKEND) / np.sqrt(WEEKEND * (1 - WEEKEND)),
        "position": -np.log1p(seen.position) * world.surface_slope[surface],
    }


def probabilities(world: World, seen: Impressions, parts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of a click, and of a conversion given the click, however late. Shape: (impressions,) each."""
    config = world.config
    strengths = config.strengths
    order = strengths["order"] * parts["order"]
    others = sum(s * parts[name] for name, s in strengths.items() if name != "order" and s > 0)
    variance = sum(s**2 for s in strengths.values())
    click = _constant(config.click_rate, variance) + world.surface_click[seen.surface] + order + others
    quality = strengths["advertiser"] * world.conversion_quality[world.item_advertiser[seen.item]]
    # Who clicks has larger signals than who is shown the ad: the mean of what both logits share is their covariance.
    shared = CONVERSION_SHARE * (variance - strengths["order"] ** 2) + strengths["order"] ** 2
    variance = CONVERSION_SHARE**2 * (variance - strengths["order"] ** 2) + strengths["order"] ** 2
    constant = _constant(config.conversion_rate, variance + strengths["advertiser"] ** 2)
    conversion = constant - (1 - config.click_rate) * shared + quality + order + CONVERSION_SHARE * others
    return _sigmoid(click), _sigmoid(conversion)


def _near(world: World, events: Events, seen: Impressions, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the newest events of how near their topics are to the ad's; and with each times its surface's sign."""
    theta = world.angle[world.item_topic[events.item]]
    about, sign = events.item >= 0, world.surface_sign[events.surface]
    end = np.searchsorted(_key(world, events.owner, events.time_s), _key(world, seen.owner, seen.time_s))
    start = np.maximum(end - RECENT, events.starts[seen.owner])
    count = np.maximum(end - start, 1)
    plain, signed = np.zeros(len(angle)), np.zeros(len(angle))
    for part, ad in ((np.cos(theta) * about, np.cos(angle)), (np.sin(theta) * about, np.sin(angle))):
        for total, values in ((plain, part), (signed, part * sign)):
            summed = np.concatenate([[0.0], np.cumsum(values)])
            total += (summed[end] - summed[start]) / count * ad
    return plain, signed


def _last_journey(world: World, events: Events, seen: Impressions) -> np.ndarray:
    """Way of the newest journey that has ended before; no impression falls inside a journey."""
    journeys = events.journeys
    key = _key(world, journeys.owner, journeys.end_s)
    found = np.searchsorted(key, _key(world, seen.owner, seen.time_s)) - 1
    if not len(key):
        return np.zeros(len(seen.owner))
    own = (found >= 0) & (journeys.owner[found] == seen.owner)
    return np.where(own, np.where(journeys.forward[found], 1.0, -1.0), 0.0)


def _has(users: Users, events: Events, kind: int) -> np.ndarray:
    """Users that have such events. Shape: (users,) bool."""
    return np.bincount(events.owner[events.stream == kind], minlength=len(users)) > 0


def _cosine(world: World, topic: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cosine: np.ndarray = np.sqrt(2) * np.cos(world.angle[topic] - angle)
    return cosine


def _key(world: World, owner: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """Ascends by user, then by time."""
    key: np.ndarray = owner * (1 << 34) + time_s - world.first_s
    return key


def _constant(rate: float, variance: float) -> float:
    """The logit at which the mean over signals of this variance is about `rate` (the probit approximation)."""
    return float(np.log(rate / (1 - rate)) * np.sqrt(1 + np.pi * variance / 8))


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    probability: np.ndarray = 1.0 / (1.0 + np.exp(-logit))
    return probability
