"""dist_train/checkpoint.py: what is saved comes back, and nothing damaged is loaded."""

import json
from pathlib import Path

import pytest
import torch

from dist_train.checkpoint import FILES, CheckpointError, load_checkpoint, save_checkpoint
from dist_train.config import RunConfig, load_run_config


def save(folder: Path, value: float = 1.0) -> dict[str, torch.Tensor]:
    state = {"a.weight": torch.full((2, 3), value), "anchor": torch.arange(4.0)}
    save_checkpoint(
        folder,
        state=state,
        memory={"b": torch.ones(2)},
        series={"name": "x", "series": []},
        config=RunConfig(name="n"),
        facts={"step": 3, "val_mse": 0.5, "dtype": "fp32"},
    )
    return state


def test_what_is_saved_comes_back(tmp_path: Path):
    state = save(tmp_path / "best")
    loaded = load_checkpoint(tmp_path / "best")
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[name], value) for name, value in state.items())
    assert torch.equal(loaded.memory["b"], torch.ones(2))
    assert loaded.series == {"name": "x", "series": []}
    assert (loaded.manifest["step"], loaded.manifest["val_mse"]) == (3, 0.5)
    assert load_run_config(tmp_path / "best/config.yaml") == RunConfig(name="n")


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside(tmp_path: Path):
    save(tmp_path / "best", 1.0)
    save(tmp_path / "best", 2.0)
    assert load_checkpoint(tmp_path / "best").model["a.weight"][0, 0] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("name", FILES)
def test_refuses_an_altered_file(tmp_path: Path, name: str):
    save(tmp_path / "best")
    path = tmp_path / "best" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: altered since it was saved"):
        load_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_missing_file(tmp_path: Path, name: str):
    save(tmp_path / "best")
    (tmp_path / "best" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(tmp_path / "best")


def test_refuses_a_folder_without_a_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(manifest.json is missing\)"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a checkpoint manifest"),
        ("[]", "not a checkpoint manifest"),
        ("{}", "not a checkpoint manifest"),
        ('{"format": 99, "sha256": {}}', "format 99 is not known"),
        ('{"format": 2, "sha256": {"../../etc/passwd": "0"}}', "format 2 is not known"),
    ],
)
def test_refuses_a_foreign_manifest(tmp_path: Path, text: str, message: str):
    save(tmp_path / "best")
    (tmp_path / "best/manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "best")


def test_the_manifest_lists_every_file(tmp_path: Path):
    save(tmp_path / "best")
    manifest = json.loads((tmp_path / "best/manifest.json").read_text())
    files = {path.name for path in (tmp_path / "best").iterdir()}
    assert files == {*manifest["sha256"], "manifest.json"}
