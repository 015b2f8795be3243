"""Compiled code: where it is kept, packed and unpacked, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemkit.cli.main import main
from gemkit.compilation import archive as archives
from gemkit.compilation import place
from gemkit.compilation.archive import MANIFEST, Archive, pack
from gemkit.compilation.place import TRITON_VARIABLE, VARIABLE, compiled_folder, environment, key_of
from gemkit.compilation.stored import contents
from gemkit.errors import GemkitError

FILES = {
    "ab/cabc.py": b"x = 1\n",
    "ab/cabd.so": bytes(range(256)) * 9,
    "fxgraph/xy/fxyz/entry": b"",
    "triton/K.json": b"{}",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose caches are in this folder."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(TRITON_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cache() -> Path:
    """This environment's folder, filled."""
    folder = compiled_folder()
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "locks").mkdir()
    (folder / "locks" / "c.lock").touch()
    return folder


@pytest.fixture
def packed(cache: Path, tmp_path: Path) -> Path:
    file = tmp_path / "compiled.zip"
    pack(cache, file)
    return file


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestPlace:
    def test_the_users_cache_by_environment(self, home: Path) -> None:
        assert compiled_folder() == home / "gemkit" / "compiled" / key_of(environment())
        assert all(environment().values())

    def test_a_relative_xdg_folder_is_ignored(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "caches")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert place.default_root() == tmp_path / ".cache" / "gemkit" / "compiled"

    def test_pytorchs_variable_wins(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
        assert place.keep_compiled_code(tmp_path / "configured") == tmp_path / "mine"
        assert not (tmp_path / "configured").exists()

    def test_what_pytorch_sets_itself_does_not(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        monkeypatch.setenv(VARIABLE, default_cache_dir())
        assert compiled_folder(tmp_path).parent == tmp_path

    def test_pytorch_and_triton_are_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(VARIABLE, "")
        monkeypatch.setenv(TRITON_VARIABLE, "")
        monkeypatch.delenv(TRITON_VARIABLE)
        folder = place.keep_compiled_code(tmp_path)
        assert place.os.environ[VARIABLE] == str(folder)
        assert place.os.environ[TRITON_VARIABLE] == str(folder / "triton")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(GemkitError, match="cannot write"):
            place.keep_compiled_code(tmp_path / "file")

    @pytest.mark.parametrize("fact", ["torch", "compiler", "instructions", "gpu", "python", "system"])
    def test_each_fact_makes_another_folder(self, fact: str) -> None:
        assert key_of(environment() | {fact: "another"}) != key_of(environment())

    def test_the_compiler_and_its_instructions_are_seen(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", str(tmp_path / "none"))
        assert place._compiler() == ("none", "none")
        fake = tmp_path / "c++"
        fake.write_text('#!/bin/sh\necho \'#define __VERSION__ "7.1"\'\necho "#define $1"\n')
        fake.chmod(0o755)
        monkeypatch.setenv("CXX", str(fake))
        version, instructions = place._compiler()
        assert version == "7.1"
        fake.write_text(fake.read_text().replace("$1", "$1 __AVX512F__"))
        assert place._compiler()[0] == "7.1" and place._compiler()[1] != instructions


class TestRoundTrip:
    def test_elsewhere(self, packed: Path, tmp_path: Path) -> None:
        with Archive(packed) as archive:
            assert archive.unpack(tmp_path / "elsewhere") == (len(FILES), 0)
        assert files_in(tmp_path / "elsewhere") == FILES
        assert not list(tmp_path.glob(".unpacking-*"))

    def test_the_same_cache_gives_the_same_archive(self, cache: Path, tmp_path: Path) -> None:
        assert pack(cache, tmp_path / "a.zip") == pack(cache, tmp_path / "b.zip")
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()

    def test_what_is_there_stays(self, packed: Path, tmp_path: Path) -> None:
        (tmp_path / "there" / "ab").mkdir(parents=True)
        (tmp_path / "there" / "ab" / "cabc.py").write_text("mine")
        with Archive(packed) as archive:
            assert archive.unpack(tmp_path / "there") == (len(FILES) - 1, 1)
        assert files_in(tmp_path / "there") == FILES | {"ab/cabc.py": b"mine"}

    def test_links_are_not_packed(self, cache: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (cache / "ab" / "link").symlink_to(tmp_path / "secret")
        pack(cache, tmp_path / "a.zip")
        assert set(zipfile.ZipFile(tmp_path / "a.zip").namelist()) == {*FILES, MANIFEST}

    def test_nothing_to_pack(self, tmp_path: Path) -> None:
        with pytest.raises(GemkitError, match="no compiled code"):
            pack(tmp_path / "none", tmp_path / "a.zip")
        assert not list(tmp_path.glob("*a.zip*"))


def rewritten(file: Path, change: Callable[[zipfile.ZipFile, dict[str, Any]], None]) -> Path:
    """An archive of the same files whose manifest, and entries, `change` has had its way with."""
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist() if name != MANIFEST}
        manifest = json.loads(old.read(MANIFEST))
    with zipfile.ZipFile(file, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)
        change(new, manifest)
        if manifest:
            new.writestr(MANIFEST, json.dumps(manifest))
    return file


def add(name: str, mode: int = 0, content: bytes = b"evil") -> Callable[[zipfile.ZipFile, dict[str, Any]], None]:
    """Adds an entry that the manifest knows."""

    def change(new: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        new.writestr(entry, content)
        manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]

    return change


def unlisted(new: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
    new.writestr("ab/more", b"")


def set_to(*path: str, value: Any) -> Callable[[zipfile.ZipFile, dict[str, Any]], None]:
    def change(new: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
        inner = manifest
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Path]:
    """Where archives are unpacked to; afterwards there is nothing, and nothing beside it."""
    folder = tmp_path / "room" / "elsewhere"
    folder.parent.mkdir()
    yield folder
    assert not folder.exists() or not files_in(folder)
    assert [p for p in folder.parent.iterdir() if p != folder] == []
    assert not (tmp_path / "evil").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (add("../evil"), "no name of a file"),
            (add("ab/../../evil"), "no name of a file"),
            (add("/evil"), "no name of a file"),
            (add("C:\\evil"), "no name of a file"),
            (add("ab//evil"), "no name of a file"),
            (add("ab/."), "no name of a file"),
            (add("folder/"), "no name of a file"),
            (add("e\nvil"), "no name of a file"),
            (add("link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "a link"),
            (add("fifo", stat.S_IFIFO | 0o644), "a link, or no plain file"),
            (add("ab/cabc.py/inner"), "a file and a folder"),
            (unlisted, "not in it"),
            (set_to("files", "ab/gone", value=[1, "0" * 64]), "other files"),
            (set_to("files", "ab/cabc.py", value=[7, "0" * 64]), "not as long"),
            (set_to("files", "ab/cabc.py", value=[6, "0" * 64]), "ab/cabc.py is not what the manifest says"),
            (set_to("files", "ab/cabc.py", value=[-6, "0" * 64]), "what is in it"),
            (set_to("files", "ab/cabc.py", value="6"), "what is in it"),
            (set_to("files", value={}), "what is in it"),
            (set_to("environment", "torch", value=2), "for which environment"),
            (set_to("environment", value={}), "for which environment"),
            (set_to("format", value=99), "format 1"),
            (lambda _, manifest: manifest.clear(), "no manifest"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_archives_that_were_made_so(
        self, change: Callable[[zipfile.ZipFile, dict[str, Any]], None], words: str, packed: Path, untouched: Path
    ) -> None:
        with pytest.raises(GemkitError, match=words), Archive(rewritten(packed, change)) as archive:
            archive.unpack(untouched)

    def test_a_name_twice(self, packed: Path, untouched: Path) -> None:
        def twice(new: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
            with pytest.warns(UserWarning, match="Duplicate"):
                new.writestr("ab/cabc.py", FILES["ab/cabc.py"])

        with pytest.raises(GemkitError, match="other files"):
            Archive(rewritten(packed, twice))

    @pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
    def test_truncated(self, share: float, packed: Path, untouched: Path) -> None:
        content = packed.read_bytes()
        packed.write_bytes(content[: int(share * len(content))])
        with pytest.raises(GemkitError, match="damaged"):
            Archive(packed)

    def test_each_damaged_byte_is_found(self, packed: Path, untouched: Path) -> None:
        content = packed.read_bytes()
        start = content.index(b"ab/cabd.so") + 40
        for position in range(start, start + 200, 50):
            packed.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(GemkitError), Archive(packed) as archive:
                archive.unpack(untouched)

    def test_too_much(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "MAX_BYTES", 100)
        with pytest.raises(GemkitError, match="more than"):
            Archive(packed)
        monkeypatch.undo()
        monkeypatch.setattr(archives, "MAX_MANIFEST_BYTES", 10)
        with pytest.raises(GemkitError, match="too large"):
            Archive(packed)

    def test_another_sha256(self, packed: Path) -> None:
        with pytest.raises(GemkitError, match="another archive: its sha256 is"):
            Archive(packed, "0" * 64)


class TestCommand:
    def test_pack_and_unpack(self, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = str(tmp_path / "compiled.zip")
        assert main(["cache", "pack", file]) == 0
        sha256 = capsys.readouterr().out.split()[-1]
        elsewhere = tmp_path / "elsewhere"
        assert main(["cache", "unpack", file, "--sha256", sha256, "--folder", str(elsewhere)]) == 0
        assert files_in(elsewhere / cache.name) == FILES
        assert main(["cache", "info", "--json", "--folder", str(elsewhere)]) == 0
        out = capsys.readouterr().out
        report = json.loads(out[out.index("{") :])
        assert report["kept"][0] | {"graphs": 1, "files": 4} == report["kept"][0]

    def test_it_wants_a_word_of_trust(self, packed: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["cache", "unpack", str(packed)]) == 2
        shown = capsys.readouterr().err
        assert "is a program" in shown and "--trust" in shown and "--sha256" in shown
        assert main(["cache", "unpack", str(packed), "--sha256", "1" * 64, "--trust"]) == 2
        assert main(["cache", "unpack", str(packed), "--trust"]) == 0

    def test_another_environment(
        self, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rewritten(packed, set_to("environment", "instructions", value="0" * 16))
        words = ["cache", "unpack", str(packed), "--trust", "--folder", str(tmp_path / "to")]
        assert main(words) == 2
        assert "instructions 0000000000000000, here" in capsys.readouterr().err
        assert not (tmp_path / "to").exists()
        assert main([*words, "--foreign"]) == 0
        key = key_of(environment() | {"instructions": "0" * 16})
        assert files_in(tmp_path / "to" / key) == FILES
        assert main(["cache", "info", "--folder", str(tmp_path / "to")]) == 0
        assert f"{key}  1 graphs, 4 files" in capsys.readouterr().out
        monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
        assert main([*words, "--foreign"]) == 2

    def test_clear(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        foreign, other = cache.parent / ("0" * 16), cache.parent / "other"
        foreign.mkdir()
        other.mkdir()
        assert len(contents(cache)) == 2
        assert main(["cache", "clear"]) == 0
        assert list(cache.parent.iterdir()) == [other]
        assert capsys.readouterr().out.startswith(f"{sum(map(len, FILES.values())):,} bytes")

    def test_a_folder_that_the_user_named_is_not_cleared(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, str(cache))
        assert main(["cache", "clear"]) == 2
        assert main(["cache", "info"]) == 0
        assert cache.exists()
