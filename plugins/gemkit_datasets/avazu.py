"""Avazu_x1: mobile ads, preprocessed and split as in the BARS benchmark."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.schema import CategoricalFeature, Task
from gemkit.data.source import Source, Split, Stream
from gemkit_datasets.local_files import CheckedFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import SPLIT, published_splits

FEATURES = tuple(f"feat_{i}" for i in range(1, 23))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvazuX1Config(CheckedFilesConfig):
    """Avazu_x1."""

    md5s: ClassVar[dict[str, str]] = {
        "train.csv": "f1114a07aea9e996842c71648e0f6395",
        "valid.csv": "d9568f246357d156c4b8030fadb8b623",
        "test.csv": "9e2fe9c48705c9315ae7a0953eb57acf",
    }

    name: str = "avazu_x1"
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)


@component("data", AvazuX1Config)
class AvazuX1(LocalFilesRecipe):
    """40,428,967 mobile ad impressions of ten days, 22 categories without names; no users, no times.

    The files are comma-separated with the header `label,feat_1,...,feat_22`, split at random into 28,300,276,
    4,042,897 and 8,085,794 rows. They were converted from the libsvm files of AFN's authors, of which the index of
    each field was kept; an empty cell is unknown. BARS uses min_count 1.

    Paper: The split is that of Cheng et al., Adaptive Factorization Network, AAAI 2020.
    """

    published = "Avazu_x1 by RecZoo (github.com/reczoo/Datasets, Avazu/Avazu_x1)"
    terms = (
        "The Avazu data is by Avazu, from a Kaggle challenge; its terms are on"
        " https://www.kaggle.com/c/avazu-ctr-prediction. gemkit reads the files that you have."
    )

    config: AvazuX1Config

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        return Source(
            name="avazu_x1",
            examples=Stream(
                lambda: published_splits(files, FEATURES, ("label",)), sum(f.num_bytes for f in files.values())
            ),
            categorical=tuple(CategoricalFeature(name=n) for n in FEATURES),
            tasks=(Task(name="label"),),
            split=Split(by="column", column=SPLIT),
            min_count=self.config.min_count,
            files=hashes_of(files),
        )
