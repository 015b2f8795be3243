"""Criteo_x1: the display advertising challenge, preprocessed and split as in the BARS benchmark."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.schema import CategoricalFeature, DenseFeature, Task
from gemkit.data.source import Source, Split, Stream
from gemkit_datasets.local_files import CheckedFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import SPLIT, published_splits

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriteoX1Config(CheckedFilesConfig):
    """Criteo_x1."""

    md5s: ClassVar[dict[str, str]] = {
        "train.csv": "30b89c1c7213013b92df52ec44f52dc5",
        "valid.csv": "f73c71fb3c4f66b6ebdfa032646bea72",
        "test.csv": "2c48b26e84c04a69b948082edae46f8c",
    }

    name: str = "criteo_x1"
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)


@component("data", CriteoX1Config)
class CriteoX1(LocalFilesRecipe):
    """45,840,617 ad impressions of one week, 13 numbers and 26 categories of unnamed meaning; no users, no times.

    The files are comma-separated with the header `label,I1,...,I13,C1,...,C26`, split at random into 33,003,326,
    8,250,124 and 4,587,167 rows. They were converted from the libsvm files of AFN's authors: of I1 to I13 the value was
    kept, of C1 to C26 the index. That form has all 39 fields in each row, so nothing is missing; an empty number is
    refused, an empty category is unknown. BARS uses the numbers as they are and min_count 1.

    Paper: The split is that of Cheng et al., Adaptive Factorization Network, AAAI 2020.
    Differs: Numbers are standardised once more, like every dense feature. Whether and how AFN's authors scaled them
        before is not said where the files are published, and is not checked here.
    """

    published = "Criteo_x1 by RecZoo (github.com/reczoo/Datasets, Criteo/Criteo_x1)"
    terms = (
        "The Criteo display advertising data is by Criteo, from a Kaggle challenge; its terms are on"
        " https://www.kaggle.com/c/criteo-display-ad-challenge. gemkit reads the files that you have."
    )

    config: CriteoX1Config

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        return Source(
            name="criteo_x1",
            examples=Stream(
                lambda: published_splits(files, CATEGORIES, ("label", *NUMBERS)),
                sum(f.num_bytes for f in files.values()),
            ),
            dense=tuple(DenseFeature(name=n) for n in NUMBERS),
            categorical=tuple(CategoricalFeature(name=n) for n in CATEGORIES),
            tasks=(Task(name="label"),),
            split=Split(by="column", column=SPLIT),
            min_count=self.config.min_count,
            files=hashes_of(files),
        )
