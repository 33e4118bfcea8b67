"""dist_train/data/download.py: a file is there whole, or not at all (see also test_catalog)."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dist_train.data import download as module
from dist_train.data.catalog import CATALOG
from dist_train.data.download import download, is_offline, sha256_of


def test_the_checksum_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "abc").write_text("abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")  # FIPS 180-2, example B.1


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path):
    (tmp_path / "old").write_text("old")
    assert download("file:///does/not/exist", tmp_path / "old", "0" * 64) is None
    assert (tmp_path / "old").read_text() == "old"


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "source").write_text("x")
    failure = download((tmp_path / "source").as_uri(), tmp_path / "to" / "file", "0" * 64)
    assert failure is not None
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)]
)
def test_the_variable_is_read_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, value: str, offline: bool
):
    monkeypatch.delenv("TIMELLM_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline


PUBLISHED = b"date,a\n2020-01-01,1\n" * 1000
CHECKSUM = hashlib.sha256(PUBLISHED).hexdigest()


class Publisher(BaseHTTPRequestHandler):
    """Answers well, or in the ways that a bad line or a bad host answers."""

    def do_GET(self) -> None:
        body = PUBLISHED.replace(b"1\n", b"9\n") if self.path == "/tampered" else PUBLISHED
        if self.path == "/garbage":
            self.wfile.write(b"nothing like HTTP\r\n\r\n")
            return
        self.send_response(200)
        if self.path != "/without-length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page", ["whole", "without-length"])
def test_a_published_file_takes_its_place(host: str, tmp_path: Path, page: str):
    assert download(f"{host}/{page}", tmp_path / "file", CHECKSUM) is None
    assert (tmp_path / "file").read_bytes() == PUBLISHED


@pytest.mark.parametrize(
    ("page", "checksum", "why"),
    [
        ("tampered", CHECKSUM, f"has checksum .*, not the published {CHECKSUM}"),
        ("cut", CHECKSUM, "/cut ended after 10000 of 20000 bytes"),
        ("cut", None, "/cut ended after 10000 of 20000 bytes"),
        ("garbage", CHECKSUM, "could not be downloaded"),
    ],
)
def test_what_is_not_the_published_file_never_takes_its_place(
    host: str, tmp_path: Path, page: str, checksum: str | None, why: str
):
    failure = download(f"{host}/{page}", tmp_path / "to/file", checksum)
    assert failure is not None
    assert re.search(why, failure)
    assert list((tmp_path / "to").iterdir()) == []


def test_an_answer_without_end_is_given_up(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_LARGEST", 1000)
    failure = download(f"{host}/without-length", tmp_path / "to/file", None)
    assert failure == f"{host}/without-length is larger than 1000 bytes"
    assert list((tmp_path / "to").iterdir()) == []


def test_the_one_set_that_is_fetched_unchecked_is_known():
    unchecked = [entry.name for entry in CATALOG.values() if entry.urls and entry.sha256 is None]
    assert unchecked == ["ETTm2"]
