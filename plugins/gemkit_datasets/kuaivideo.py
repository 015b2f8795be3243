"""KuaiVideo_x1: micro-videos shown to users of Kuaishou, as the BARS benchmark publishes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.fetch import sha256_of
from gemkit.data.schema import CategoricalFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split
from gemkit.errors import GemkitError
from gemkit_datasets.histories_in_rows import KIND, LOG, POSITION, GrowingLogs, streams
from gemkit_datasets.local_files import CheckedFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import SPLIT, published_splits

LISTS = {"click": {"item_id": "pos_items"}, "no_click": {"item_id": "neg_items"}}
LABELS = ("is_click", "is_like", "is_follow")
VISUAL = "item_visual_emb_dim64.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KuaiVideoX1Config(CheckedFilesConfig):
    """KuaiVideo_x1."""

    md5s: ClassVar[dict[str, str]] = {
        "train.csv": "16f13734411532cc313caf2180bfcd56",
        "test.csv": "ba26c01caaf6c65c272af11aa451fc7a",
    }

    name: str = "kuaivideo_x1"
    max_history: int = option(200, "Newest events of each history that are read.", ge=1)
    valid: float = option(0.1, "Share of train.csv's rows, its last ones, that become valid.", gt=0, lt=1)
    min_count: int = option(10, "An id that training has seen less often is treated as unknown.", ge=1)
    tasks: tuple[str, ...] = option(("is_click",), "Labels that are learned.", choices=LABELS, filled=True)
    visual: bool = option(False, f"Read the videos' 64 visual numbers from `{VISUAL}` in the folder of files.")


@component("data", KuaiVideoX1Config)
class KuaiVideoX1(LocalFilesRecipe):
    """13,661,383 previews of micro-videos by 10,000 users: which are clicked (and liked, and followed by a follow)?

    The files are comma-separated with the header
    `timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items`, sorted by timestamp. `pos_items` are
    videos that the user had clicked, `neg_items` such as the user had not, ids parted by ^; of each, at most the
    *first* 100. Both grow from row to row, so a user has one log with two streams, `click` and `no_click`.

    Paper: The split is that of Li et al., Routing Micro-videos via a Temporal Graph-guided Recommendation System, MM
        2019.
    Differs: The histories are stored once and rows point at them; a history that does not continue its user's log
        begins another. In the log, the two lists are merged in the order in which they grow; what both gained between
        two rows is taken clicks first. The times of the files tell the order only and are not read: the age of an
        event counts events. There is no published valid split: the last `valid` of train.csv's rows, the newest, are
        taken for it, where BARS takes test.csv. The visual vectors are properties of the target, not of the events.
    """

    published = "KuaiVideo_x1 by RecZoo (github.com/reczoo/Datasets, KuaiShou/KuaiVideo_x1)"
    terms = (
        "KuaiVideo is by Kuaishou, from a competition at China MM 2018; its page is"
        " https://www.kuaishou.com/activity/uimc. gemkit reads the files that you have."
    )

    config: KuaiVideoX1Config

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        examples, events = streams(
            lambda: published_splits(
                files, ["user_id", "item_id", "pos_items", "neg_items"], self.config.tasks, self.config.valid
            ),
            sum(f.num_bytes for f in files.values()),
            "user_id",
            LISTS,
            GrowingLogs,
        )
        items, hashes = None, hashes_of(files)
        if self.config.visual:
            items = read_visual(Path(self.config.files))
            hashes[VISUAL] = sha256_of(Path(self.config.files) / VISUAL)
        return Source(
            name="kuaivideo_x1",
            examples=examples,
            events=events,
            items=items,
            categorical=(
                CategoricalFeature(name="user_id", role="user"),
                CategoricalFeature(name="item_id", role="item"),
            ),
            vectors=(VectorFeature(name="visual", role="item", of="items"),) if items is not None else (),
            event_fields=(EventField(name="item_id"),),
            tasks=tuple(Task(name=name) for name in self.config.tasks),
            user=LOG,
            item="item_id" if items is not None else None,
            timestamp=POSITION,
            stream=KIND,
            group="user_id",
            split=Split(by="column", column=SPLIT),
            min_count=self.config.min_count,
            files=hashes,
            items_title=VISUAL,
        )


def read_visual(folder: Path) -> pa.Table:
    """Row i of the array is the vector of item i.

    Raises:
        GemkitError: The file is missing, or is no array of numbers of two dimensions.
    """
    path = folder / VISUAL
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GemkitError(
            f"cannot read {VISUAL}: {error}",
            where=str(folder),
            fix="write the array `value` of item_visual_emb_dim64.h5 to it with numpy.save, or data.visual=false",
        ) from error
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise GemkitError(
            f"{VISUAL} has the shape {array.shape} and the type {array.dtype}",
            where=str(path),
            allowed="a row of floating-point numbers for each item",
        )
    values = np.ascontiguousarray(array, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.table({"item_id": pa.array(np.arange(len(values))), "visual": vectors})
