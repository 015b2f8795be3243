"""AmazonElectronics_x1: reviews of electronics, as DIN prepared them and the BARS benchmark publishes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.schema import CategoricalFeature, EventField, Task
from gemkit.data.source import Source, Split
from gemkit_datasets.histories_in_rows import LOG, POSITION, GrowingLogs, streams
from gemkit_datasets.local_files import CheckedFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import SPLIT, published_splits

LISTS = {"review": {"item_id": "item_history", "cate_id": "cate_history"}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmazonElectronicsX1Config(CheckedFilesConfig):
    """AmazonElectronics_x1."""

    md5s: ClassVar[dict[str, str]] = {
        "train.csv": "e9bf80b92985e463db18fdc753d347b5",
        "test.csv": "57a20e82fe736dd495f2eaf0669bf6d0",
    }

    name: str = "amazonelectronics_x1"
    max_history: int = option(100, "Newest events of each history that are read.", ge=1)
    valid: float = option(0.1, "Share of train.csv's rows, its last ones, that become valid.", gt=0, lt=1)
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)


@component("data", AmazonElectronicsX1Config)
class AmazonElectronicsX1(LocalFilesRecipe):
    """2,993,570 examples of 192,403 users and 63,001 goods: is this the next thing that the user reviews?

    The files are comma-separated with the header `label,user_id,item_id,cate_id,item_history,cate_history`; the
    histories are ids parted by ^. A user's histories are the beginnings of one list, so each user has one log.

    Paper: Zhou et al., Deep Interest Network, arXiv 1706.06978, which made the examples.
    Differs: The histories are stored once and rows point at them. The files have no times: the age of an event counts
        events, not seconds. There is no published valid split: the last `valid` of train.csv's rows are taken for it,
        where BARS takes test.csv.
    """

    published = "AmazonElectronics_x1 by RecZoo (github.com/reczoo/Datasets, Amazon/AmazonElectronics_x1)"
    terms = (
        "The Amazon product data is by McAuley et al., UCSD, for research; its page is"
        " https://cseweb.ucsd.edu/~jmcauley/datasets.html. gemkit reads the files that you have."
    )

    config: AmazonElectronicsX1Config

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        text = ["user_id", "item_id", "cate_id", *LISTS["review"].values()]
        examples, events = streams(
            lambda: published_splits(files, text, ["label"], self.config.valid),
            sum(f.num_bytes for f in files.values()),
            "user_id",
            LISTS,
            GrowingLogs,
        )
        return Source(
            name="amazonelectronics_x1",
            examples=examples,
            events=events,
            categorical=(
                CategoricalFeature(name="user_id", role="user"),
                CategoricalFeature(name="item_id", role="item"),
                CategoricalFeature(name="cate_id", role="item"),
            ),
            event_fields=(EventField(name="item_id"), EventField(name="cate_id")),
            tasks=(Task(name="label"),),
            user=LOG,
            timestamp=POSITION,
            group="user_id",
            split=Split(by="column", column=SPLIT),
            min_count=self.config.min_count,
            files=hashes_of(files),
        )
