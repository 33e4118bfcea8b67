"""Whatever bytes lie under the names of a bank's files: refused by name, or of no use."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.manifest import ManifestError
from memory_index.store import BankFolder, chunk_name, sha256_of
from tests.memory_index.test_store import publish


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_in_place_of_a_part_do_not_count_as_built(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
):
    folder = BankFolder(tmp_path_factory.getbasetemp(), "torn")
    folder.building.mkdir(exist_ok=True)
    (folder.building / chunk_name(0)).write_bytes(content)
    assert folder.read_part(chunk_name(0)) is None
    assert not (folder.building / chunk_name(0)).exists()


HEADERS = st.fixed_dictionaries(
    {
        "__metadata__": st.just({"part": f"aaaa/{chunk_name(0)}"}),
        "keys": st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16", "F8_E4M3", "F4", "C64", "X", 3]),
                "shape": st.lists(st.integers(-1, 4), max_size=3) | st.none(),
                "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
            }
        ),
    }
)


@settings(deadline=None, max_examples=200)
@given(
    content=st.binary(max_size=80),
    header=st.binary(max_size=40) | HEADERS.map(lambda header: json.dumps(header).encode()),
    signed=st.booleans(),
)
def test_whatever_lies_under_the_name_of_a_chunk_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bytes, signed: bool
):
    folder, name = BankFolder(tmp_path_factory.getbasetemp() / "fuzzed", "aaaa"), chunk_name(0)
    manifest = folder.open() if folder.exists else publish(folder)
    path = folder.path / name
    # As safetensors begins: the length of a header, then that many bytes of JSON.
    for data in (content, len(header).to_bytes(8, "little") + header + content):
        path.write_bytes(data)
        if signed:
            manifest.files[name] = sha256_of(path)
        try:
            tensors = folder.load(manifest, name)
        except ManifestError as error:
            refusal = str(error)
        else:
            refusal = f"{path} is a file after all"
            assert signed
            assert tensors["keys"].nbytes <= len(content)
        assert str(path) in refusal


@settings(deadline=None, max_examples=150)
@given(
    content=st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["curve", "1", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps({"curve": value}).encode())
)
def test_a_measurement_of_no_use_is_none(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = BankFolder(tmp_path_factory.getbasetemp(), "measured")
    folder.path.mkdir(exist_ok=True)
    (folder.path / "recall.json").write_bytes(content)
    found = folder.read_recall()
    if found is not None:
        assert found["curve"]
        assert {type(effort) for effort in found["curve"]} == {int}
        assert {type(value) for value in found["curve"].values()} == {float}


@pytest.mark.parametrize(
    "text", ["{}", '{"curve": {}}', '{"curve": {"1": 1' + "0" * 400 + "}}", "[" * 100_000]
)
def test_a_measurement_that_cannot_be_read_is_none(tmp_path: Path, text: str):
    folder = BankFolder(tmp_path, "aaaa")
    folder.path.mkdir()
    (folder.path / "recall.json").write_text(text)
    assert folder.read_recall() is None
