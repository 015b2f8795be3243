"""Downloads: resumed, checked, all or nothing. The server is in this process."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from functools import partial

import pytest

from gemkit.data import fetch
from gemkit.data.fetch import download, md5_of, pip_download, sha256_of
from gemkit.errors import GemkitError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; knows ranges; `/breaks` closes the connection half way."""

    def __init__(self, asked: list, *args) -> None:
        self.asked = asked
        super().__init__(*args)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path != "/no-ranges" else 0
        if self.path == "/missing":
            return self.send_error(404, "Not Found")
        if start >= len(CONTENT):
            return self.send_error(416, "Range Not Satisfiable")
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : len(CONTENT) // 2 if self.path == "/breaks" else None])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    asked: list = []
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, asked))
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    served.server_close()
    thread.join()


def silent(*args) -> None:
    pass


def test_a_download_is_whole_and_reports_progress(server, tmp_path):
    seen = []
    download(server[0] + "/f", tmp_path / "a" / "f", lambda *p: seen.append(p), sha256=SHA256)
    assert (tmp_path / "a" / "f").read_bytes() == CONTENT
    assert seen[0] == ("f", 0, len(CONTENT)) and seen[-1] == ("f", len(CONTENT), len(CONTENT))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    download(server[0] + "/f", tmp_path / "f", silent, sha256=SHA256)
    assert server[1] == []


def test_a_broken_download_is_continued(server, tmp_path):
    with pytest.raises(GemkitError, match=r"connection broke|IncompleteRead") as caught:
        download(server[0] + "/breaks", tmp_path / "f", silent, sha256=SHA256)
    assert "it continues where it stopped" in caught.value.fix
    assert not (tmp_path / "f").exists()
    half = (tmp_path / "f.part").stat().st_size
    assert half == len(CONTENT) // 2
    download(server[0] + "/f", tmp_path / "f", silent, md5=hashlib.md5(CONTENT).hexdigest())
    assert server[1][-1] == ("/f", f"bytes={half}-")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["/no-ranges", "/f"])
def test_a_useless_part_is_started_again(server, tmp_path, path):
    # A server without ranges sends everything; a part as long as the file cannot be continued.
    (tmp_path / "f.part").write_bytes(b"x" * (10 if path == "/no-ranges" else len(CONTENT)))
    download(server[0] + path, tmp_path / "f", silent, sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_hash_shows_both_and_keeps_nothing(server, tmp_path):
    with pytest.raises(GemkitError) as caught:
        download(server[0] + "/f", tmp_path / "f", silent, sha256="0" * 64)
    assert SHA256 in caught.value.what and caught.value.allowed == "0" * 64
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_reported(server, tmp_path):
    with pytest.raises(GemkitError, match="404 Not Found"):
        download(server[0] + "/missing", tmp_path / "f", silent)


def test_an_unreachable_server_costs_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT_TIMEOUT_S", 0.5)
    start = time.monotonic()
    with pytest.raises(GemkitError, match="cannot download f"):
        download("http://192.0.2.1/f", tmp_path / "f", silent)  # an address that is reserved for documentation
    assert time.monotonic() - start < 5


def test_hashes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert md5_of(tmp_path / "f") == "900150983cd24fb0d6963f7d28e17f72"
    assert sha256_of(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_pip_says_why_it_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(GemkitError, match=r"pip could not download gemkit-no-such==1: .*No matching distribution"):
        pip_download("gemkit-no-such==1", tmp_path / "w", "0" * 64, silent)
    assert not list((tmp_path / "w").iterdir())
