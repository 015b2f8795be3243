"""MovieLens-1M as a ranking data set: every rating is an example, and the ratings before it are its history."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.config.run import DataConfig
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task
from gemkit.data.source import Source, Split
from gemkit.errors import GemkitError
from gemkit.interfaces import DataRecipe
from gemkit_datasets.movielens_files import Tables, fetch_files, read_files

AUTOINT_SEED = 2019


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovieLens1MConfig(DataConfig):
    """MovieLens-1M."""

    name: str = "movielens1m"
    split: str = option(
        "time",
        "time: all ratings, histories, the newest tenth is the test; autoint: the published random split of the AutoInt"
        " paper, without ids and histories.",
        choices=("time", "autoint"),
    )
    surface_by: str = option(
        "none",
        "What stands in for the surface of an example, of which the data says nothing: the user's gender or age group, "
        "so that each is a domain of its own (split=time).",
        choices=("none", "gender", "age"),
    )
    max_history: int = option(48, "Newest events of each history that are read.", ge=1)
    archive: str | None = option(None, "A copy of ml-1m.zip that you already have; null: it is downloaded.")

    def check(self) -> None:
        super().check()
        if self.surface_by != "none" and self.split != "time":
            raise GemkitError(
                f"surface_by = {self.surface_by} needs split = time", where="surface_by", fix="data.split=time"
            )

    @property
    def folder_name(self) -> str:
        if self.surface_by != "none":
            return f"{self.name}_by_{self.surface_by}"
        return self.name if self.split == "time" else f"{self.name}_{self.split}"

    @property
    def build_options(self) -> dict[str, Any]:
        left_out = {"archive", *(["surface_by"] if self.surface_by == "none" else [])}
        return {k: v for k, v in super().build_options.items() if k not in left_out}


@component("data", MovieLens1MConfig)
class MovieLens1M(DataRecipe):
    """One million ratings of 3,706 movies by 6,040 users, with times.

    `split=time`: an example for every rating; tasks `like` (4 stars or more) and `love` (5 stars, counted among the
    liked). Its history are the user's ratings strictly before it. The absolute time is no feature: it does not carry
    over to a later test; hour and weekday (UTC) are.

    `split=autoint`: the random 80/10/10 split of a paper, for comparing with its printed table: ratings of 3 dropped,
    `like` = more than 3; no user id, no movie id, no history, and the time as a number.

    Paper: Harper and Konstan, The MovieLens Datasets, TiiS 2015; the split: AutoInt, CIKM 2019 (arXiv 1810.11921).
    Differs: The paper scales the time to 0..1; here it is standardised, like every dense feature.
    """

    terms = (
        "MovieLens-1M is by GroupLens Research, University of Minnesota. It may be used for research, not for revenue,"
        " and may NOT be redistributed; publications cite Harper and Konstan, TiiS 2015 (doi 10.1145/2827872)."
        " It is downloaded to this machine for you; the full terms: https://files.grouplens.org/datasets/movielens/"
        "ml-1m-README.txt"
    )

    def __init__(self, config: MovieLens1MConfig) -> None:
        self.config = config

    def fetch(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        """Takes `archive`, or the first of the two sources that answers; see `movielens_files`."""
        fetch_files(folder, self.config.archive, progress)

    def source(self, folder: Path) -> Source:
        tables, files = read_files(folder)
        return (
            autoint_source(tables, files)
            if self.config.split == "autoint"
            else time_source(tables, files, self.config.surface_by)
        )


def time_source(tables: Tables, files: dict[str, str], surface_by: str = "none") -> Source:
    """Every rating, with its history, split by time."""
    ratings = _joined(tables)
    stars, seconds = ratings["rating"].to_numpy(), ratings["timestamp"].to_numpy()
    examples = ratings.append_column("like", pa.array((stars >= 4).astype(np.int8)))
    examples = examples.append_column("love", pa.array((stars == 5).astype(np.int8)))
    examples = examples.append_column("hour", pa.array(seconds // 3600 % 24))
    examples = examples.append_column("weekday", pa.array((seconds // 86400 + 3) % 7))  # 1970 began on a Thursday
    return Source(
        name="movielens1m",
        examples=examples,
        events=ratings.select(["user_id", "movie_id", "rating", "timestamp"]),
        categorical=(
            CategoricalFeature(name="user_id", role="user"),
            *(CategoricalFeature(name=name, role="user") for name in ("gender", "age", "occupation", "zip")),
            CategoricalFeature(name="movie_id", role="item"),
            CategoricalFeature(name="genres", role="item", multi=True),
            CategoricalFeature(name="year", role="item"),
            CategoricalFeature(name="hour", role="context"),
            CategoricalFeature(name="weekday", role="context"),
        ),
        event_fields=(EventField(name="movie_id"), EventField(name="rating")),
        tasks=(Task(name="like"), Task(name="love", masked_by="like")),
        user="user_id",
        timestamp="timestamp",
        group="user_id",
        surface=None if surface_by == "none" else surface_by,
        files=files,
    )


def autoint_source(tables: Tables, files: dict[str, str]) -> Source:
    """The AutoInt paper's examples, fields and split."""
    ratings = _joined(tables)
    examples = ratings.filter(pc.not_equal(ratings["rating"], 3))
    like = pc.greater(examples["rating"], 3).cast(pa.int8())
    return Source(
        name="movielens1m_autoint",
        examples=examples.append_column("like", like).append_column("split", autoint_split(examples.num_rows)),
        dense=(DenseFeature(name="timestamp", role="context"),),
        categorical=(
            *(CategoricalFeature(name=name, role="user") for name in ("gender", "age", "occupation", "zip")),
            CategoricalFeature(name="genres", role="item", multi=True),
            CategoricalFeature(name="year", role="item"),
        ),
        tasks=(Task(name="like"),),
        timestamp="timestamp",
        split=Split(by="column"),
        files=files,
    )


def autoint_split(num_rows: int) -> pa.Array:
    """The paper's shuffle, 80/10/10, as a column of split names."""
    order = list(range(num_rows))
    random.Random(AUTOINT_SEED).shuffle(order)
    num_train, num_valid = int(0.8 * num_rows), int(0.1 * num_rows)
    names = np.full(num_rows, 2)
    names[order[:num_train]] = 0
    names[order[num_train : num_train + num_valid]] = 1
    return pa.array(["train", "valid", "test"]).take(pa.array(names))


def _joined(tables: Tables) -> pa.Table:
    """Ratings in the publisher's order, with the properties of user and movie beside them."""
    ratings = tables.ratings
    user = pc.index_in(ratings["user_id"], value_set=tables.users["user_id"].combine_chunks()).combine_chunks()
    movie = pc.index_in(ratings["title"], value_set=tables.movies["title"].combine_chunks()).combine_chunks()
    columns = {"user_id": ratings["user_id"]}
    columns |= {n: tables.users[n].combine_chunks().take(user) for n in ("gender", "age", "occupation", "zip")}
    columns |= {"movie_id": ratings["title"]}
    columns |= {n: tables.movies[n].combine_chunks().take(movie) for n in ("genres", "year")}
    return pa.table(columns | {"rating": ratings["rating"], "timestamp": ratings["timestamp"]})
