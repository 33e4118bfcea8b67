"""model/weight_files.py: weights that were cut off, or of which a part is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.backbone_files import locate_backbone
from model.weight_files import check_complete
from tests.helpers.backbones import tiny_backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "backbone"
    shutil.copytree(tiny_backbone("gpt2"), copy)
    return copy


def check(folder: Path) -> int:
    return check_complete(locate_backbone(str(folder)))


def test_whole_weights_are_counted(folder: Path):
    assert check(folder) == (folder / "model.safetensors").stat().st_size


def test_a_file_of_no_tensors_is_whole(folder: Path):
    save_file({}, folder / "model.safetensors")
    assert check(folder) < 100


@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_a_file_that_is_too_short_or_too_long_is_refused(change: int, folder: Path):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(ValueError, match=rf"has {len(content) + change} bytes of {len(content)}"):
        check(folder)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\0" * 8]
)
def test_a_file_without_a_header_is_refused(content: bytes, folder: Path):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="has no readable header: copy or download it again"):
        check(folder)


def test_a_missing_part_is_named(folder: Path):
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(2)}, folder / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"part-2\.safetensors of 2 weight files are not in"):
        check(folder)
    save_file({"b": torch.zeros(2)}, folder / "part-2.safetensors")
    assert check(folder) > 0
