"""A small synthetic data set, built like any other: something for tests to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from gemkit.data.build import build
from gemkit.data.dataset import Dataset
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source


def make_source(
    *,
    num_users: int = 40,
    num_items: int = 30,
    num_examples: int = 1200,
    num_events: int = 2400,
    seed: int = 0,
    with_events: bool = True,
    surfaces: int = 2,
    vector_width: int = 6,
) -> Source:
    """Users like the items of some categories, and have clicked and bought such items before.

    The label depends on user x category (so histories help), a dense feature and the surface. Every kind of feature
    occurs: dense, single, bag, vector; two streams of events; two tasks, ``buy`` masked by ``click`` and days after it
    (of some it is not known when). Some users have no events, and timestamps have ties.
    """
    rng = np.random.default_rng(seed)
    num_categories = 5
    category = rng.integers(num_categories, size=num_items)
    taste = rng.normal(size=(num_users, num_categories)) * 2
    content = rng.normal(size=(num_categories, vector_width))[category] + 0.3 * rng.normal(
        size=(num_items, vector_width)
    )

    user = rng.integers(num_users, size=num_examples)
    item = rng.integers(num_items, size=num_examples)
    surface = rng.integers(surfaces, size=num_examples)
    price = rng.lognormal(size=num_examples)
    logit = taste[user, category[item]] - 0.5 * np.log1p(price) + 0.8 * surface - 0.3
    click = rng.random(num_examples) < 1 / (1 + np.exp(-logit))
    buy = click & (rng.random(num_examples) < 1 / (1 + np.exp(1 - taste[user, category[item]])))
    late = np.random.default_rng([seed, 1])
    delay_s = late.exponential(2 * 86_400, num_examples)
    slot_s, num_slots = 6 * 3600, 120  # coarse, so that some examples share a history and events tie with examples
    tags = [[f"category{category[i]}"] + [f"tag{t}" for t in range(i % 3)] for i in item]
    examples = pa.table(
        {
            "user_id": pa.array(user),
            "item_id": pa.array([f"item{i}" for i in item]),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "price": pa.array(price),
            "age": pa.array((20 + user % 50).astype(np.float32)),
            "content": pa.array(list(content[item].astype(np.float32)), pa.list_(pa.float32())),
            "surface": pa.array([f"surface{s}" for s in surface]),
            "click": pa.array(click.astype(np.int8)),
            "buy": pa.array(buy.astype(np.int8)),
            "buy_after_s": pa.array(delay_s, mask=~buy | (late.random(num_examples) < 0.1)),
            "weight": pa.array(rng.choice([0.5, 1.0, 2.0], num_examples)),
            "timestamp": pa.array(1_700_000_000 + slot_s * rng.integers(num_slots, size=num_examples)),
        }
    )
    events = None
    if with_events:
        # A tenth of the users has no events; the others mostly meet items of the categories that they like.
        who = rng.integers(num_users // 10, num_users, size=num_events)
        what = rng.integers(num_items, size=(num_events, 3))
        what = what[np.arange(num_events), taste[who[:, None], category[what]].argmax(axis=1)]
        events = pa.table(
            {
                "user_id": pa.array(who),
                "item_id": pa.array([f"item{i}" for i in what]),
                "category": pa.array([f"category{category[i]}" for i in what]),
                "kind": pa.array(np.where(rng.random(num_events) < 0.8, "click", "buy")),
                "timestamp": pa.array(1_700_000_000 + slot_s * rng.integers(-num_slots, num_slots, size=num_events)),
            }
        )
    return Source(
        name="synthetic",
        examples=examples,
        events=events,
        dense=(DenseFeature(name="price", transform="log1p"), DenseFeature(name="age", role="user")),
        categorical=(
            CategoricalFeature(name="user_id", role="user"),
            CategoricalFeature(name="item_id", role="item"),
            CategoricalFeature(name="tags", role="item", multi=True),
        ),
        vectors=(VectorFeature(name="content", role="item"),),
        event_fields=(EventField(name="item_id"), EventField(name="category", table="tags")) if with_events else (),
        tasks=(Task(name="click"), Task(name="buy", masked_by="click", delay="buy_after_s")),
        user="user_id",
        timestamp="timestamp",
        stream="kind" if with_events else None,
        weight="weight",
        surface="surface" if surfaces > 1 else None,
        group="user_id",
    )


def make_dataset(
    folder: Path,
    *,
    num_users: int = 40,
    num_items: int = 30,
    num_examples: int = 1200,
    num_events: int = 2400,
    seed: int = 0,
    with_events: bool = True,
    surfaces: int = 2,
    vector_width: int = 6,
) -> Dataset:
    """Builds `make_source` into `folder` and opens it."""
    source = make_source(
        num_users=num_users,
        num_items=num_items,
        num_examples=num_examples,
        num_events=num_events,
        seed=seed,
        with_events=with_events,
        surfaces=surfaces,
        vector_width=vector_width,
    )
    build(source, folder, lambda *_: None)
    return Dataset.open(folder)
