"""KuaiRand-Pure: short videos on Kuaishou, several surfaces, many kinds of feedback, some exposures at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.arrays import as_array
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task
from gemkit.data.source import Source, Split, Stream
from gemkit_datasets.local_files import LocalFile, LocalFilesConfig, LocalFilesRecipe, hashes_of
from gemkit_datasets.pieces import read_pieces, read_whole

STANDARD = ("log_standard_4_08_to_4_21_pure", "log_standard_4_22_to_5_08_pure")
RANDOM = "log_random_4_22_to_5_08_pure"
USERS, VIDEOS = "user_features_pure", "video_features_basic_pure"
FILES = (*STANDARD, RANDOM, USERS, VIDEOS)

LABELS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
USER_FEATURES = (
    "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
    "fans_user_num_range", "friend_user_num_range", "register_days_range", *(f"onehot_feat{i}" for i in range(18)),
)  # fmt: skip
VIDEO_FEATURES = ("author_id", "video_type", "upload_type", "music_id", "music_type")
BEIJING_S = 8 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class KuaiRandPureConfig(LocalFilesConfig):
    """KuaiRand-Pure."""

    md5s: ClassVar[dict[str, str]] = {f"{name}.csv": "" for name in FILES}

    name: str = "kuairand_pure"
    max_history: int = option(100, "Newest events of each history that are read.", ge=1)
    min_count: int = option(1, "An id that training has seen less often is treated as unknown.", ge=1)
    tasks: tuple[str, ...] = option(LABELS, "Labels that are learned; the first picks the best checkpoint.",
                                    choices=LABELS, filled=True)  # fmt: skip
    random_examples: bool = option(False, "Make examples of the random exposures, too; they are events in any case.")
    split: Split = dataclasses.field(
        default_factory=Split, metadata={"doc": "How examples are divided into train, valid and test."}
    )


@component("data", KuaiRandPureConfig)
class KuaiRandPure(LocalFilesRecipe):
    """2.6 million exposures of 7,583 videos to 27,285 users over a month, on up to 15 surfaces (`tab`).

    Examples are the exposures of the two standard logs, in the order of the files, split by time; each kind of feedback
    is a task. The event log holds all exposures of the three logs: the video, the surface, and what the user did
    (`feedback`: the labels that are 1, joined by +), in the streams `click` and `no_click`. Features of users and
    videos are tables of their own. Hour and weekday are Beijing's.

    Not read: `play_time_ms` and the stay times, known only afterwards; `video_features_statistic_pure.csv`, averages
    over the whole month, future included; counts of users that also come as a range (`follow_user_num_range`).

    Paper: Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, CIKM 2022.
    Differs: The publisher gives neither md5s nor a split; the manifest keeps the sha256 of what was read.
    """

    published = "KuaiRand-Pure (kuairand.com, github.com/chongminggao/KuaiRand)"
    terms = (
        "KuaiRand is by Gao et al. with Kuaishou, under CC BY-SA 4.0; publications cite KuaiRand, CIKM 2022. Its page"
        " is https://kuairand.com. gemkit reads the files that you have."
    )

    config: KuaiRandPureConfig

    def source(self, folder: Path) -> Source:
        files = self.read_files(folder)
        logs = [files[name] for name in (*STANDARD, RANDOM)]
        shown = logs if self.config.random_examples else logs[:-1]
        items = read_whole(files[VIDEOS].path, ["video_id", *VIDEO_FEATURES, "tag"])
        return Source(
            name="kuairand_pure",
            examples=Stream(lambda: _examples(shown, self.config.tasks), sum(f.num_bytes for f in shown)),
            events=Stream(lambda: _events(logs), sum(f.num_bytes for f in logs)),
            users=read_whole(files[USERS].path, ["user_id", *USER_FEATURES]),
            items=items.set_column(items.column_names.index("tag"), "tag", _tags(items["tag"].combine_chunks())),
            dense=(DenseFeature(name="duration_ms", role="item", transform="log1p"),),
            categorical=(
                CategoricalFeature(name="user_id", role="user"),
                *(CategoricalFeature(name=n, role="user", of="users") for n in USER_FEATURES),
                CategoricalFeature(name="video_id", role="item"),
                *(CategoricalFeature(name=n, role="item", of="items") for n in VIDEO_FEATURES),
                CategoricalFeature(name="tag", role="item", of="items", multi=True),
                *(CategoricalFeature(name=n, role="context") for n in ("tab", "hour", "weekday")),
            ),
            event_fields=tuple(EventField(name=n) for n in ("video_id", "tab", "feedback")),
            tasks=tuple(Task(name=n) for n in self.config.tasks),
            user="user_id",
            item="video_id",
            timestamp="timestamp",
            stream="kind",
            surface="tab",
            group="user_id",
            split=self.config.split,
            min_count=self.config.min_count,
            files=hashes_of(files),
            users_title=files[USERS].path.name,
            items_title=files[VIDEOS].path.name,
        )


def _examples(logs: list[LocalFile], tasks: tuple[str, ...]) -> Iterator[pa.Table]:
    for log in logs:
        for piece in read_pieces(log.path, ["user_id", "video_id", "tab"], ["time_ms", "duration_ms", *tasks]):
            seconds = _seconds(piece)
            local = seconds + BEIJING_S
            columns = {n: piece[n] for n in ("user_id", "video_id", "tab", "duration_ms", *tasks)}
            columns |= {"timestamp": pa.array(seconds), "hour": pa.array(local // 3600 % 24)}
            columns |= {"weekday": pa.array((local // 86400 + 3) % 7)}  # 1970 began on a Thursday; 0 is a Monday
            yield pa.table(columns).replace_schema_metadata(piece.schema.metadata)


def _events(logs: list[LocalFile]) -> Iterator[pa.Table]:
    names = np.array(["+".join(n for i, n in enumerate(LABELS) if code >> i & 1) for code in range(1 << len(LABELS))])
    for log in logs:
        for piece in read_pieces(log.path, ["user_id", "video_id", "tab"], ["time_ms", *LABELS]):
            done = [as_array(piece[n].combine_chunks().fill_null(0)) == 1 for n in LABELS]
            code = sum(flag.astype(np.int64) << i for i, flag in enumerate(done))
            columns = {n: piece[n] for n in ("user_id", "video_id", "tab")}
            columns |= {"timestamp": pa.array(_seconds(piece)), "feedback": pa.array(names[code])}
            columns |= {"kind": pa.array(np.where(done[0], "click", "no_click"))}
            yield pa.table(columns).replace_schema_metadata(piece.schema.metadata)


def _seconds(piece: pa.Table) -> np.ndarray:
    """Milliseconds are whole numbers below 2**53: exact as float64."""
    milliseconds: np.ndarray = as_array(piece["time_ms"].combine_chunks().fill_null(np.nan))
    return np.floor(milliseconds / 1000)


def _tags(texts: pa.Array) -> pa.Array:
    """``12,65`` is a bag of two; an empty cell is an empty bag."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar([], pa.list_(pa.string())), pc.split_pattern(texts, ","))
