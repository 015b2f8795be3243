"""TaobaoAd_x1: display ads on Taobao with shopping histories, as the BARS benchmark publishes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task
from gemkit.data.source import Source, Split
from gemkit_datasets.histories_in_rows import LOG, POSITION, SeparateLogs, streams
from gemkit_datasets.local_files import CheckedFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import SPLIT, published_splits

USER = ("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
        "occupation", "new_user_class_level")  # fmt: skip
ITEM = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")
LISTS = {"behaviour": {"cate_id": "cate_his", "brand": "brand_his", "btag": "btag_his"}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaobaoAdX1Config(CheckedFilesConfig):
    """TaobaoAd_x1."""

    md5s: ClassVar[dict[str, str]] = {
        "train.csv": "eaabfc8629f23519b04593e26c7522fc",
        "test.csv": "f5ae6197e52385496d46e2867c1c8da1",
    }

    name: str = "taobaoad_x1"
    max_history: int = option(50, "Newest events of each history that are read; the files have at most 50.", ge=1)
    valid: float = option(0.1, "Share of train.csv's rows, its last ones, that become valid.", gt=0, lt=1)
    min_count: int = option(10, "An id that training has seen less often is treated as unknown.", ge=1)


@component("data", TaobaoAdX1Config)
class TaobaoAdX1(LocalFilesRecipe):
    """25,029,426 ad impressions of eight days, with what their users had browsed, put into carts, liked and bought.

    The files are comma-separated with the columns `clk, btag_his, cate_his, brand_his, userid, cms_segid,
    cms_group_id, final_gender_code, age_level, pvalue_level, shopping_level, occupation, new_user_class_level,
    adgroup_id, cate_id, campaign_id, customer, brand, price, pid, btag`; histories are ids parted by ^, at most 50,
    zeros left out. `pid`, where the ad was shown, is the surface; `btag`, always 1, is not read. The first seven days
    are train.csv, the eighth is test.csv.

    Paper: Lyu et al., Deep Match to Rank, AAAI 2020, whose preprocessing the files follow.
    Differs: The files have no times, and each row has the last 50 events only, so a user's events cannot be put
        together with certainty: each time that a user's history changes it becomes a log of its own (`history`), which
        all rows that follow with the same history share. Its events are numbered in the order of the file, taken for
        oldest first (the publisher does not say; not checked); the age of an event counts events. Where one of the
        three lists is shorter, its oldest cells are taken to be missing. There is no published valid split: the last
        `valid` of train.csv's rows are taken for it, the newest if the file is sorted by time as its name before
        conversion says; BARS takes test.csv. The price is log-transformed.
    """

    published = "TaobaoAd_x1 by RecZoo (github.com/reczoo/Datasets, Taobao/TaobaoAd_x1)"
    terms = (
        "The Taobao ad data is by Alibaba (Tianchi); its terms are on"
        " https://tianchi.aliyun.com/dataset/dataDetail?dataId=56. gemkit reads the files that you have."
    )

    config: TaobaoAdX1Config

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        text = [*USER, *ITEM, "pid", *LISTS["behaviour"].values()]
        examples, events = streams(
            lambda: published_splits(files, text, ["clk", "price"], self.config.valid),
            sum(f.num_bytes for f in files.values()),
            "userid",
            LISTS,
            SeparateLogs,
        )
        return Source(
            name="taobaoad_x1",
            examples=examples,
            events=events,
            dense=(DenseFeature(name="price", role="item", transform="log1p"),),
            categorical=(
                *(CategoricalFeature(name=n, role="user") for n in USER),
                *(CategoricalFeature(name=n, role="item") for n in ITEM),
                CategoricalFeature(name="pid", role="context"),
            ),
            event_fields=tuple(EventField(name=n) for n in ("cate_id", "brand", "btag")),
            tasks=(Task(name="clk"),),
            user=LOG,
            timestamp=POSITION,
            surface="pid",
            group="userid",
            split=Split(by="column", column=SPLIT),
            min_count=self.config.min_count,
            files=hashes_of(files),
        )
