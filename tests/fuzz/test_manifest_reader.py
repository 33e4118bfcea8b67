"""Manifests of banks: what is signed but impossible is refused as what is altered is."""

import json
import os
from pathlib import Path

import pytest

from memory_index.manifest import FILE_NAME, ManifestError, read_manifest
from tests.fuzz.banks import read, signed, whole_files, write
from tests.fuzz.trials import assert_no_fault


def test_whatever_lies_in_a_manifest_is_read_or_refused():
    assert_no_fault("manifest", 300)


def test_the_whole_bank_is_read(tmp_path: Path):
    read(write(tmp_path, whole_files()[FILE_NAME]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0b"])
def test_a_file_outside_the_folder_is_refused_before_it_is_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    content = json.loads(whole_files()[FILE_NAME])
    path = write(tmp_path, json.dumps(signed({**content, "files": {name: "0" * 64}})).encode())
    opened: list[str] = []
    monkeypatch.setattr("memory_index.store.sha256_of", lambda file: opened.append(str(file)))
    with pytest.raises(ManifestError, match=f"{path}: lists .*, which is no name of a file in its"):
        read(path)
    assert opened == []


@pytest.mark.parametrize("created", ["yesterday", "", "2026-01-01", "2026-01-01T00:00:00"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, created: str):
    content = json.loads(whole_files()[FILE_NAME])
    path = write(tmp_path, json.dumps(signed({**content, "created": created})).encode())
    with pytest.raises(ManifestError, match=f"{path}: a format that this version does not know"):
        read_manifest(path.parent)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(ManifestError, match="manifest.json: not a file"):
        read_manifest(tmp_path)
