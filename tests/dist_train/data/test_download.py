"""dist_train/data/download.py: a file is there whole, or not at all (see also test_catalog)."""

from pathlib import Path

import pytest

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
