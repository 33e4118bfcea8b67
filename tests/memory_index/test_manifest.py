"""memory_index/manifest.py: it comes back as it was written, or is refused by name."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.manifest import (
    FILE_NAME,
    Manifest,
    ManifestError,
    read_manifest,
    version_of,
    write_manifest,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MANIFEST = Manifest(
    identity={"data": "abc", "rows": [[0, 10]], "stride": 1},
    fingerprint="0123456789abcdef",
    num_entries=10,
    width=4,
    kind="ivf_flat",
    nlist=2,
    metric="squared Euclidean",
    created="2026-01-01T00:00:00+00:00",
    build_s=1.25,
    ranks=2,
    files={"chunk_00000.safetensors": "ab" * 32},
)


def checksum_of(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_signed(folder: Path, content: dict[str, Any]) -> None:
    """Write any content with the checksum that belongs to it."""
    signed = {**content, "checksum": checksum_of(content)}
    (folder / FILE_NAME).write_text(json.dumps(signed))


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert content["format"] == 1
    assert content.pop("checksum") == checksum_of(content)


@settings(deadline=None)
@given(identity=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_identity_comes_back(
    tmp_path_factory: pytest.TempPathFactory, identity: dict[str, Any]
):
    folder = tmp_path_factory.getbasetemp()
    write_manifest(folder, replace(MANIFEST, identity=identity))
    back = read_manifest(folder).identity
    assert json.dumps(back) == json.dumps(identity)  # where NaN is itself
    assert version_of(back) == version_of(identity)


def test_a_folder_without_a_manifest_is_no_bank(tmp_path: Path):
    with pytest.raises(
        ManifestError, match=rf"{tmp_path}: no bank here \(manifest.json .* No such"
    ):
        read_manifest(tmp_path)


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for bit in (0, 4):
            broken = bytearray(whole)
            broken[position] ^= 1 << bit
            path.write_bytes(broken)
            try:
                assert read_manifest(tmp_path) == MANIFEST  # white space between values
            except ManifestError as error:
                assert str(path) in str(error)  # noqa: PT017
                refused += 1
    assert refused > len(whole)


def test_every_shortened_file_is_refused(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ManifestError, match=rf"{path}: not a bank's manifest"):
            read_manifest(tmp_path)


def test_an_altered_value_is_refused(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"num_entries": 10', '"num_entries": 11'))
    with pytest.raises(ManifestError, match=rf"{path}: altered since it was written"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"new": 1}, {"files": None}])
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, change: dict[str, Any]):
    write_signed(tmp_path, {"format": 1, **asdict(MANIFEST)})
    assert read_manifest(tmp_path) == MANIFEST
    write_signed(tmp_path, {"format": 1, **asdict(MANIFEST), **change})
    message = (
        rf"{tmp_path / FILE_NAME}: a format that this version does not know, it reads format 1"
    )
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_else_lies_there_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    folder = tmp_path_factory.getbasetemp()
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=str(folder)):
        read_manifest(folder)


@settings(deadline=None, max_examples=200)
@given(
    content=st.dictionaries(st.text(), JSON, max_size=4),
    changes=st.dictionaries(st.sampled_from(sorted(asdict(MANIFEST))), JSON, max_size=3),
)
def test_what_is_signed_is_refused_or_of_the_right_types(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], changes: dict[str, Any]
):
    folder = tmp_path_factory.getbasetemp()
    write_signed(folder, content)
    with pytest.raises(ManifestError):
        read_manifest(folder)
    write_signed(folder, {"format": 1, **asdict(MANIFEST), **changes})
    try:
        manifest = read_manifest(folder)
    except ManifestError:
        return
    for name, value in asdict(MANIFEST).items():
        assert isinstance(getattr(manifest, name), type(value))


@pytest.mark.parametrize("depth", [500, 990, 100_000])
def test_json_nested_too_deep_is_refused(tmp_path: Path, depth: int):
    text = '{"checksum": 1, "x": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ManifestError, match=FILE_NAME):
        read_manifest(tmp_path)


def test_the_version_depends_on_the_identity_and_not_on_its_order():
    one = version_of({"a": 1, "b": [1, 2]})
    assert one == version_of({"b": [1, 2], "a": 1})
    assert len({one, version_of({"a": 2, "b": [1, 2]}), version_of({"a": 1, "b": [2, 1]})}) == 3
    assert len(one) == 16
    assert set(one) <= set("0123456789abcdef")
