"""The synthetic ads world as a data component."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gemkit.component import component
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split, Stream
from gemkit.interfaces import DataRecipe
from gemkit_adsworld.config import AdsWorldConfig
from gemkit_adsworld.tables import event_tables, example_tables, item_table
from gemkit_adsworld.world import DAY_S, START_S, World

EVENT_BYTES, EXAMPLE_BYTES = 60, 130
"""Of a row in memory, about."""


@component("data", AdsWorldConfig)
class AdsWorld(DataRecipe):
    """A synthetic ads world whose true probabilities are known, with effects that are switched one by one.

    Users with slowly drifting interests browse posts and ads, search, follow and go on journeys; these events are the
    history. Impressions of ads on several surfaces are the examples, with the tasks `click` and `conversion` (given
    the click, late). Each effect is a strength in the config; `gemkit_adsworld.truth` says exactly what it adds.
    The true probability of each label is stored, so that the best possible metrics are known.

    Nothing is fetched. The world is made block by block of users, each time the same, in memory that does not grow
    with its size. The log holds no click on an example: it would carry a trace of every effect into the history.
    """

    def __init__(self, config: AdsWorldConfig) -> None:
        self.config = config

    def fetch(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        """There is nothing to fetch."""

    def source(self, folder: Path) -> Source:
        config = self.config
        world = World(config)
        span_s = config.days * DAY_S
        user = [CategoricalFeature(name="user", role="user")] if config.user_feature else []
        attributes = ("country", "age", "gender", "device", "plan")
        of_items = ("topic", "advertiser", "vertical", "format", "price")
        context = ("surface", "position", "hour", "weekday")
        return Source(
            name=config.name,
            examples=Stream(
                lambda: example_tables(world), round(config.num_users * config.examples_per_user) * EXAMPLE_BYTES
            ),
            events=Stream(lambda: event_tables(world), round(config.num_users * config.mean_history) * EVENT_BYTES),
            items=item_table(world),
            categorical=(
                *user,
                *(CategoricalFeature(name=name, role="user") for name in attributes),
                CategoricalFeature(name="item", role="item"),
                *(CategoricalFeature(name=name, role="item", of="items") for name in of_items),
                *(CategoricalFeature(name=name, role="context") for name in context),
            ),
            dense=(DenseFeature(name="item_age_days", role="item", transform="log1p"),),
            vectors=(VectorFeature(name="content", role="item", width=config.content_width, of="items"),),
            event_fields=tuple(EventField(name=n) for n in ("item", "topic", "advertiser", "surface", "intent")),
            tasks=(
                Task(name="click", truth="click_truth"),
                Task(name="conversion", masked_by="click", delay="delay_s", truth="conversion_truth"),
            ),
            user="user",
            item="item",
            timestamp="timestamp",
            stream="stream",
            surface="surface",
            group="user",
            split=Split(
                by="boundary", valid_from_s=START_S + round(0.8 * span_s), test_from_s=START_S + round(0.9 * span_s)
            ),
            examples_title="impressions",
        )
