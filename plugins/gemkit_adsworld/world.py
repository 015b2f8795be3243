"""What all users share: topics, items, advertisers, surfaces, the calendar, the hidden directions of the effects."""

from __future__ import annotations

import numpy as np

from gemkit_adsworld.config import SURFACES, AdsWorldConfig
from gemkit_adsworld.sampling import Choices, generator

DAY_S = 86_400
START_S = 1_767_571_200
"""The first second of the first day with examples: Monday, 5 January 2026."""

POSTS, ADS = 0, 1
AD_SHARE = 0.3
BORN_BEFORE = 0.6
"""Share of the items that are there from the first day; the others appear day by day."""
ZIPF = 0.8
NUM_COUNTRIES, NUM_AGES, NUM_DEVICES, NUM_GENDERS, NUM_PLANS = 12, 6, 4, 3, 2
NUM_VERTICALS, NUM_FORMATS, NUM_PRICES = 12, 4, 6
THETA_BINS = 64
FOCUS = 2.0
"""How narrow a user's interest is: the concentration of a von Mises distribution over the circle of topics."""
SURFACE_FOCUS = 0.7
TREND_PERIOD_DAYS = 21.0


class World:
    """Fixed tables of a world; everything that is drawn for users refers to them.

    Items are numbered in the order (post or ad, topic, day of birth), so that what can be shown of a topic on
    a day is a run.
    """

    def __init__(self, config: AdsWorldConfig) -> None:
        self.config = config
        self.total_days = config.history_days + config.days
        self.first_s = START_S - config.history_days * DAY_S
        self.end_s = START_S + config.days * DAY_S
        self.angle = 2 * np.pi * np.arange(config.num_topics) / config.num_topics
        self.surface_names = SURFACES[: config.num_surfaces]
        self.surface_share = (1.0 + np.arange(config.num_surfaces)) ** -0.5
        self.surface_share /= self.surface_share.sum()
        self._make_calendar()
        self._make_items(generator(config.seed, "items"))
        self._make_advertisers(generator(config.seed, "advertisers"))
        self._make_directions(generator(config.seed, "directions"))
        self._make_choices()

    def _make_calendar(self) -> None:
        """How busy each hour is, summed up: the inverse turns even numbers into times of day that people keep."""
        hour = np.arange(self.total_days * 24)
        weekday = (hour // 24 - self.config.history_days) % 7
        busy = 1.0 + 0.7 * np.cos(2 * np.pi * (hour % 24 - 20) / 24) + 0.2 * (weekday >= 5)
        self._busy = np.concatenate([[0.0], np.cumsum(busy)])

    def seconds(self, uniform: np.ndarray, from_day: int) -> np.ndarray:
        """Times from a day (0: the first of all) to the end, in the order of `uniform` in [0, 1). (n,) int64."""
        low, high = self._busy[from_day * 24], self._busy[-1]
        hours = np.interp(low + uniform * (high - low), self._busy, np.arange(len(self._busy)))
        seconds: np.ndarray = np.minimum((hours * 3600).astype(np.int64), self.total_days * DAY_S - 1) + self.first_s
        return seconds

    def day(self, seconds: np.ndarray) -> np.ndarray:
        """Day since the first of all, at most the last."""
        days: np.ndarray = np.minimum((seconds - self.first_s) // DAY_S, self.total_days - 1)
        return days

    def _make_items(self, rng: np.random.Generator) -> None:
        config = self.config
        n, topics = config.num_items, config.num_topics
        kind = (np.arange(n) < AD_SHARE * n).astype(np.int64)
        topic = rng.integers(topics, size=n)
        birth = np.where(rng.random(n) < BORN_BEFORE, 0, rng.integers(self.total_days, size=n))
        rank = np.empty(n, np.int64)
        for which in (POSTS, ADS):
            of = kind == which
            rank[of] = rng.permutation(int(of.sum()))
            first = np.flatnonzero(of)[: 2 * topics]
            topic[first], birth[first] = np.arange(len(first)) % topics, 0  # no topic is ever empty
        popularity = (1.0 + rank) ** -ZIPF
        order = np.lexsort((birth, topic, kind))
        self.item_kind, self.item_topic, self.item_birth = kind[order], topic[order], birth[order]
        self.popularity = popularity[order]
        self._cumulative = np.concatenate([[0.0], np.cumsum(self.popularity)])
        group = self.item_kind * topics + self.item_topic
        key = group * (self.total_days + 1) + self.item_birth
        groups = np.arange(2 * topics)[:, None] * (self.total_days + 1)
        self._group_start = np.searchsorted(key, groups[:, 0])
        # Items of a group that are born by the end of each day: (groups, days).
        self._group_end = np.searchsorted(key, groups + np.arange(self.total_days), side="right")
        self.item_format = rng.integers(NUM_FORMATS, size=n)
        self.item_price = rng.integers(NUM_PRICES, size=n)

    def draw_items(self, kind: np.ndarray | int, topic: np.ndarray, day: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Items of a topic that are there on a day, the popular more often. Shape: (n,) int64."""
        group = kind * self.config.num_topics + topic
        start, end = self._group_start[group], self._group_end[group, day]
        low, high = self._cumulative[start], self._cumulative[end]
        drawn = np.searchsorted(self._cumulative, low + uniform * (high - low), side="right") - 1
        found: np.ndarray = np.clip(drawn, start, end - 1)
        return found

    def _make_advertisers(self, rng: np.random.Generator) -> None:
        config = self.config
        n = config.num_advertisers
        self.vertical = rng.integers(NUM_VERTICALS, size=n)
        self.quality = rng.standard_normal(n)
        self.conversion_quality = rng.standard_normal(n)
        self.mean_delay_s = config.mean_delay_s * np.exp(0.7 * rng.standard_normal(n))
        owner = rng.integers(n, size=config.num_items)
        self.item_advertiser = np.where(self.item_kind == ADS, owner, -1)

    def _make_directions(self, rng: np.random.Generator) -> None:
        """What the effects depend on."""
        config, width = self.config, self.config.content_width
        centres = rng.standard_normal((config.num_topics, width))
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        noise = rng.standard_normal((config.num_items, width))
        basis = np.linalg.qr(rng.standard_normal((width, 2)))[0]
        self.content = (2.0 * centres[self.item_topic] + noise).astype(np.float32)
        self.item_shared, self.item_private = (noise @ basis).T
        self.topic_walk = rng.random() * 2 * np.pi

        sign = np.where(np.arange(config.num_surfaces) % 2 == 0, 1.0, -1.0)
        sign -= self.surface_share @ sign
        spread = np.sqrt(self.surface_share @ sign**2)
        self.surface_sign = sign / spread if spread > 0 else sign
        self.surface_slope = 0.5 + np.arange(config.num_surfaces) / max(1, config.num_surfaces - 1)
        self.surface_click = np.linspace(0.4, -0.4, config.num_surfaces)
        self.surface_angle = 2 * np.pi * np.arange(config.num_surfaces) / config.num_surfaces

        self.country_share = (1.0 + np.arange(NUM_COUNTRIES)) ** -0.5
        self.country_share /= self.country_share.sum()
        ad = self.item_kind == ADS
        vertical = self.vertical[self.item_advertiser[ad]]
        share = np.bincount(vertical, self.popularity[ad], minlength=NUM_VERTICALS)
        self.pair = _centred(rng.choice([-1.0, 1.0], (NUM_COUNTRIES, NUM_VERTICALS)), self.country_share, share)
        self.signs = {
            name: rng.permutation(np.where(np.arange(n) % 2 == 0, 1.0, -1.0))
            for name, n in (("age", NUM_AGES), ("device", NUM_DEVICES), ("format", NUM_FORMATS), ("price", NUM_PRICES))
        }

    def _make_choices(self) -> None:
        """Which topics are shown: by interest and day to users who browse, by surface and day as ads."""
        config = self.config
        trend = self.topic_walk + 2 * np.pi * np.arange(self.total_days) / TREND_PERIOD_DAYS
        by_day = config.trend * np.cos(self.angle - trend[:, None])  # (days, topics)
        theta = 2 * np.pi * (np.arange(THETA_BINS) + 0.5) / THETA_BINS
        by_theta = FOCUS * np.cos(self.angle - theta[:, None])
        by_surface = SURFACE_FOCUS * np.cos(self.angle - self.surface_angle[:, None])
        self._browsed = Choices(np.exp(by_theta[:, None] + by_day).reshape(-1, config.num_topics))
        self._advertised = Choices(np.exp(by_surface[:, None] + by_day).reshape(-1, config.num_topics))

    def browsed_topics(self, theta: np.ndarray, day: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Topics of what a user of interest `theta` (radians) looks at."""
        bin_ = (theta * (THETA_BINS / (2 * np.pi))).astype(np.int64) % THETA_BINS
        return self._browsed.draw(bin_ * self.total_days + day, uniform)

    def advertised_topics(self, surface: np.ndarray, day: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Topics of the ads of a surface: nobody's interest has a part in it."""
        return self._advertised.draw(surface * self.total_days + day, uniform)


def _centred(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Without marginals and of variance 1 under these shares: nothing of it is left for one feature alone."""
    rows, columns = rows / rows.sum(), columns / columns.sum()
    matrix = matrix - matrix @ columns[:, None]
    matrix = matrix - rows @ matrix
    scaled: np.ndarray = matrix / np.sqrt(rows @ matrix**2 @ columns)
    return scaled
