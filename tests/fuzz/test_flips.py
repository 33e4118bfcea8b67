"""Every damage to any file of a checkpoint or a bank is noticed when it is loaded."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_index.store import RECALL
from tests.fuzz.checkpoints import MANIFEST, SELF_CHECKSUM, manifest_has_self_checksum
from tests.fuzz.flips import Folder, banks_below, checkpoint_in, damaged, flip, kind_of, notices
from tests.memory_index.banks import small_chunks
from tests.memory_index.shards import KINDS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> list[Folder]:
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(finished_run / "best", root / "best")
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        return [checkpoint_in(root / "best"), *banks_below(root / "banks")]


@pytest.fixture(autouse=True)
def ten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)


def test_the_folders_are_whole_and_hold_every_kind_of_file(folders: list[Folder]):
    for folder in folders:
        folder.load()
    kinds = {folder.name: {kind_of(path) for path in folder.files()} for folder in folders}
    assert kinds.keys() == {"checkpoint", *KINDS}
    assert {"model.safetensors", "memory.safetensors", "config.yaml", "series.json"} <= kinds[
        "checkpoint"
    ]
    for kind in KINDS:
        trained = {"trained.safetensors"} if kind.startswith("ivf") else set()
        assert kinds[kind] == {"chunk", MANIFEST, *trained}


def test_damage_to_any_kind_of_file_is_noticed(folders: list[Folder]):
    result = flip(folders, 60, seed=1)
    assert result["missed"] == []
    assert result["flips_detected"] == 60
    assert len(result["kinds"]) <= 60


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=st.integers(0, 10**6), bit=st.integers(0, 10**9))
def test_any_flipped_bit_is_noticed(folders: list[Folder], chosen: int, bit: int):
    files = [(folder, path) for folder in folders for path in folder.files()]
    folder, path = files[chosen % len(files)]
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[bit // 8 % len(whole)] ^= 1 << bit % 8
    path.write_bytes(broken)
    try:
        assert notices(folder) is None
    finally:
        path.write_bytes(whole)


@pytest.mark.skipif(
    not manifest_has_self_checksum(), reason="a checkpoint's manifest carries no checksum of itself"
)
def test_a_value_changed_in_the_manifest_of_a_checkpoint_is_noticed(folders: list[Folder]):
    folder = folders[0]
    path = folder.path / MANIFEST
    content = json.loads(path.read_bytes())
    for name, value in content.items():
        if name != SELF_CHECKSUM:
            changed = value + 1 if isinstance(value, (int, float)) else {"other": value}
            path.write_text(json.dumps({**content, name: changed}))
            assert notices(folder) is None
    path.write_text(json.dumps({**content, "new": 1}))
    assert notices(folder) is None
    path.write_text(json.dumps(content))
    folder.load()


def test_what_was_measured_of_a_bank_is_no_part_of_it(folders: list[Folder]):
    bank = next(folder for folder in folders if folder.name.startswith("ivf"))
    recall = bank.path / RECALL
    recall.write_bytes(b'{"curve": {"1": 1.0}}')
    for damage in ("bit", "cut", "gone"):
        with damaged(bank, recall, damage, random.Random(3)):
            bank.load()


def test_a_loader_that_notices_nothing_is_told_from_one_that_does(folders: list[Folder]):
    blind = Folder(
        name="blind", path=folders[0].path, load=lambda: None, refusal=folders[0].refusal
    )
    assert flip([blind], 5, seed=1)["flips_detected"] == 0
