"""How large the synthetic world is, and how strong each of its effects."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from gemkit.config.fields import option
from gemkit.config.run import DataConfig
from gemkit.errors import GemkitError

EFFECTS = (
    "interest",
    "pair",
    "quad",
    "old_events",
    "ancient_events",
    "order",
    "event_x_user",
    "event_pair_x_user",
    "shared",
    "private",
    "drift",
    "advertiser",
    "seasonality",
    "position",
)
"""Fields that are strengths: what each adds to the logit is in `gemkit_adsworld.truth`. 0 switches it off."""

SURFACES = ("feed", "stories", "search", "video", "groups", "messages", "market", "profile")
MAX_STRENGTH = 10.0


def strength(default: float, doc: str) -> Any:
    """A field that holds the strength of an effect: about the standard deviation of what it adds to the logit."""
    return option(default, f"Strength: {doc}", ge=0, le=MAX_STRENGTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdsWorldConfig(DataConfig):
    """A synthetic ads world.

    Worlds that differ only in strengths have the same users, items, events and impressions: only labels differ.
    """

    name: str = "adsworld"
    seed: int = option(1, "Everything in the world follows from it.", ge=0)
    num_users: int = option(10_000, "Users.", ge=1)
    num_items: int = option(20_000, "Items: three in ten are ads, the others organic posts.", ge=100, le=100_000_000)
    num_advertisers: int = option(500, "Advertisers.", ge=2, le=10_000_000)
    num_topics: int = option(16, "Topics. They lie on a circle; neighbours are alike.", ge=4, le=1000)
    num_surfaces: int = option(3, "Surfaces.", ge=1, le=len(SURFACES))
    days: int = option(14, "Days with examples; the last tenth is test, the tenth before it valid.", ge=1, le=1000)
    history_days: int = option(60, "Days with events only, before the first example.", ge=1, le=1000)
    examples_per_user: float = option(20.0, "Impressions of a user, mean.", ge=1, le=100_000)
    ads_per_request: int = option(2, "Impressions that share a user's request and thus its time.", ge=1, le=100)
    mean_history: float = option(430.0, "Events of a user over all days, mean before clipping.", gt=0, le=1e6)
    sigma: float = option(0.8, "Deviation of the logarithm of the number of events.", ge=0, le=3)
    shortest_history: int = option(100, "Fewest events of a user.", ge=1, le=1_000_000)
    longest_history: int = option(10_000, "Most events of a user.", ge=1, le=1_000_000)
    content_width: int = option(16, "Numbers in an item's content vector.", ge=2, le=4096)
    click_rate: float = option(0.1, "Clicks per impression, about.", gt=0, lt=1)
    conversion_rate: float = option(0.2, "Conversions per click, about, if one could wait for ever.", gt=0, lt=1)
    mean_delay_s: float = option(86_400.0, "Delay of a conversion, mean of the middle advertiser.", gt=0, le=1e9)
    attribution_s: float | None = option(
        None, "A conversion later than this after the click is not seen, its label is 0; null: each is seen.", gt=0
    )
    trend: float = option(0.5, "How much the topics of what is shown drift over the days; 0: not.", ge=0, le=5)
    interest: float = strength(0.5, "recent events are about the ad's topic, or one near it.")
    pair: float = strength(0.4, "country and the advertiser's vertical, order 2.")
    quad: float = strength(0.4, "age, device, format and price, order 4 with a part of order 2.")
    old_events: float = strength(0.4, "topic of searches that are not among the newest 20 events.")
    ancient_events: float = strength(0.4, "topic of follows that are not among the newest 200 events.")
    order: float = strength(0.4, "which way the last journey went: the order of its events.")
    event_x_user: float = strength(0.4, "as interest, but opposite for the two values of `plan`.")
    event_pair_x_user: float = strength(
        0.0, "as event_x_user, but opposite for events of different surfaces: each event's topic and surface together."
    )
    shared: float = strength(0.4, "a direction of the content vector, alike on all surfaces.")
    private: float = strength(0.4, "another direction, with weights that differ in sign between surfaces.")
    drift: float = strength(0.4, "the ad's topic, with weights that turn over the days.")
    advertiser: float = strength(0.3, "each advertiser's own.")
    seasonality: float = strength(0.2, "hour and weekend.")
    position: float = strength(0.3, "the place within a request; steeper on some surfaces.")
    user_feature: bool = option(False, "The user's id is a feature: models can learn users by heart.")
    max_history: int = option(512, "Newest events of each history that are read.", ge=1)

    def check(self) -> None:
        super().check()
        if self.shortest_history > self.longest_history:
            raise GemkitError(
                f"shortest_history = {self.shortest_history} is more than longest_history",
                where="shortest_history",
                allowed=f"<= {self.longest_history}",
            )
        if self.examples_per_user < self.ads_per_request:
            raise GemkitError(
                f"examples_per_user = {self.examples_per_user:g} is less than one request",
                where="examples_per_user",
                allowed=f">= ads_per_request = {self.ads_per_request}",
            )
        if self.num_items < 20 * self.num_topics:
            raise GemkitError(
                f"num_items = {self.num_items} is too few for {self.num_topics} topics",
                where="num_items",
                allowed=f">= {20 * self.num_topics}",
            )

    @property
    def folder_name(self) -> str:
        """Each world has a folder of its own, so that worlds can be compared."""
        if self.build_options == AdsWorldConfig().build_options:
            return self.name
        text = json.dumps(self.build_options, sort_keys=True)
        return f"{self.name}-{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:10]}"

    @property
    def strengths(self) -> dict[str, float]:
        """Effect -> strength."""
        return {name: getattr(self, name) for name in EFFECTS}
