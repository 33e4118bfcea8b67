"""dist_train/export.py: a folder that forecasts as the run did, alone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train import export as export_module
from dist_train.checkpoint import CheckpointError
from dist_train.config import ConfigError
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.export import export, export_run, is_export, load_export, open_run
from dist_train.loading import load_run
from dist_train.prediction import load_newest, predict
from tests.helpers.backbones import tiny_backbone

ROOT = Path(__file__).parents[2]
# Without the training stack: whatever asks for it fails as if it were not installed.
ALONE = """
import sys
for name in ("deepspeed", "wandb"):
    sys.modules[name] = None
import pandas as pd
from model import TimeLLM
model = TimeLLM.from_pretrained(sys.argv[1])
frame = pd.read_csv(sys.argv[2])
result = model.predict(frame, level=[80])
result.to_csv(sys.argv[3], index=False)
assert not [name for name in sys.modules if name.split(".")[0] in ("deepspeed", "wandb")
            and sys.modules[name] is not None]
"""


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run with a copy of its data, both to be deleted."""
    data = load_run(run).config.data.path
    assert data is not None
    shutil.copy(data, folder / "data.csv")
    copy = shutil.copytree(run, folder / "run")
    config = copy / "best/config.yaml"
    text = config.read_text().replace(data, str(folder / "data.csv"))
    from tests.helpers.runs import replace_file

    replace_file(copy, "config.yaml", text)
    return copy


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(finished_run, tmp_path_factory.mktemp("exported") / "model")


@pytest.mark.parametrize("which", ["dual key, one series", "anchored key, several series", "plain"])
def test_it_forecasts_the_same_when_run_and_data_are_gone_and_nothing_trains(
    finished_run: Path, further_runs: dict[str, Path], tmp_path: Path, which: str
):
    runs = {"dual": finished_run, "anch": further_runs["long"], "plai": further_runs["plain"]}
    run = copied(runs[which[:4]], tmp_path)
    loaded = load_run(run)
    history = tmp_path / "newest.csv"
    table = pd.read_csv(tmp_path / "data.csv")
    table.to_csv(history, index=False)
    expected = predict(loaded, load_newest(loaded, str(history)), levels=[80])
    out = export_run(run, tmp_path / "out")
    shutil.rmtree(run)
    (tmp_path / "data.csv").unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = tmp_path / "result.csv"
    subprocess.run(
        [sys.executable, "-c", ALONE, str(out), str(history), str(result)],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    found = pd.read_csv(result)
    name = "TimeLLM" if "unique_id" in found else "v1"
    for end, values in (
        ("", [one.values[:, -1] for one in expected]),
        ("-lo-80", [one.intervals[80][0][:, -1] for one in expected]),
        ("-hi-80", [one.intervals[80][1][:, -1] for one in expected]),
    ):
        np.testing.assert_allclose(found[name + end], np.concatenate(values), rtol=0, atol=1e-6)


def test_it_holds_no_folder_of_this_machine_but_the_backbones(exported: Path, finished_run: Path):
    content = json.loads((exported / "config.json").read_text())
    text = (exported / "config.json").read_text() + (exported / "README.md").read_text()
    assert str(finished_run.parent.parent) not in text
    assert content["config"]["data"]["path"] == "series.csv"
    assert content["backbone"]["name"] == str(tiny_backbone("gpt2"))
    assert str(tiny_backbone("gpt2")) not in (exported / "README.md").read_text()


def test_patterns_of_several_folders_stay_two_sources(finished_run: Path):
    config = load_run(finished_run).config
    paths = ["/here/north/*.csv", "/here/south/*.csv"]
    several = replace(config, data=DataConfig(sources=[SourceConfig(path=path) for path in paths]))
    told = export_module._portable(several)["data"]["sources"]
    assert [(one["name"], one["path"]) for one in told] == [
        ("north", "*.csv"), ("south", "*.csv"),
    ]  # fmt: skip


def test_only_training_rows_are_handed_on(exported: Path):
    run = load_export(exported)
    assert run.retriever is not None
    train = run.retriever.data.windows["train"]
    ((_, end),) = train.ranges
    assert end == 420
    assert len(train.values[0]) == 600
    assert np.isnan(train.values[0][end:]).all()
    assert np.isfinite(train.values[0][:end]).all()


def test_the_kept_layers_make_it_self_contained(further_runs: dict[str, Path], tmp_path: Path):
    run = load_run(further_runs["long"])
    out = export(run, further_runs["long"], tmp_path / "out", include_backbone=True)
    moved = (tmp_path / "elsewhere").parent / "moved"
    out.rename(moved)
    content = json.loads((moved / "config.json").read_text())
    assert content["backbone"]["included"] is True
    config = json.loads((moved / "backbone/config.json").read_text())
    assert config["n_layer"] == 2  # of four
    again = load_export(moved)
    assert str(moved) in again.config.backbone.name
    series_set = load_newest(run, None)
    for one, other in zip(predict(run, series_set), predict(again, series_set), strict=True):
        np.testing.assert_allclose(other.values, one.values, rtol=0, atol=1e-6)


def test_what_was_exported_can_be_exported_again(exported: Path, tmp_path: Path):
    again = export_run(exported, tmp_path / "again")
    for name in ("config.json", "README.md"):
        assert (again / name).read_text() == (exported / name).read_text()
    sums = [json.loads((one / "manifest.json").read_text())["sha256"] for one in (exported, again)]
    assert sums[0] == sums[1]


def test_weights_that_were_trained_on_are_those_that_are_written(
    further_runs: dict[str, Path], tmp_path: Path
):
    source = further_runs["plain"]
    run = load_run(source)
    with torch.no_grad():
        for parameter in run.module.trained_parameters().values():
            parameter.mul_(1.01)
    out = export(run, source, tmp_path / "out")
    again = load_export(out)
    own, found = run.module.trained_state_dict(), again.module.trained_state_dict()
    assert all(torch.equal(own[name], found[name]) for name in own)
    assert again.calibration is None  # it was that of other weights
    assert "trained on after they were last scored" in (out / "README.md").read_text()


def flip_the_end(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def change_a_number(path: Path) -> None:
    path.write_text(path.read_text().replace("4", "5", 1))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights": ("model.safetensors", flip_the_end, "altered"),
    "settings": ("config.json", change_a_number, "altered"),
    "histories": ("memory/series.safetensors", Path.unlink, "missing"),
    "intervals": ("calibration.safetensors", Path.unlink, "missing"),
    "no manifest": ("manifest.json", Path.unlink, "not the manifest of an exported model"),
    "manifest": ("manifest.json", change_a_number, "altered"),
    "no JSON": ("manifest.json", lambda path: path.write_text("{"), "not the manifest"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_named(exported: Path, tmp_path: Path, what: str):
    name, damage, message = DAMAGES[what]
    folder = shutil.copytree(exported, tmp_path / "damaged")
    damage(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}: {message}.*export the run anew"):
        load_export(folder)


def test_the_card_may_be_written_into(exported: Path, tmp_path: Path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    with (folder / "README.md").open("a") as card:
        card.write("\nOurs.\n")
    assert load_export(folder).config.data.seq_len == 48


def test_a_manifest_names_nothing_outside_its_folder(exported: Path, tmp_path: Path):
    from memory_index.manifest import checksum_of

    folder = shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "outside").write_text("x")
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    content["sha256"]["../outside"] = "0" * 64
    content["checksum"] = checksum_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside: missing"):
        load_export(folder)


def test_a_newer_format_is_refused(exported: Path, tmp_path: Path):
    from memory_index.manifest import checksum_of

    folder = shutil.copytree(exported, tmp_path / "copy")
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    content["format"] = 99
    (folder / "manifest.json").write_text(json.dumps({**content, "checksum": checksum_of(content)}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        load_export(folder)


def test_another_backbone_is_refused(exported: Path, tmp_path: Path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    from dist_train.export import _seal

    config = folder / "config.json"
    config.write_text(config.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    (folder / "manifest.json").unlink()
    _seal(folder)
    with pytest.raises(CheckpointError, match="not the ones this run was trained with"):
        load_export(folder)
    run = load_export_with(folder, tmp_path)
    assert "backbone" in run


def load_export_with(folder: Path, tmp_path: Path) -> str:
    """The message where the weights are nowhere under another name."""
    with pytest.raises(ValueError, match="backbone") as refusal:
        open_run(folder, backbone=str(tmp_path / "nowhere"))
    return str(refusal.value)


def test_the_backbone_may_lie_elsewhere(exported: Path, tmp_path: Path):
    elsewhere = shutil.copytree(tiny_backbone("gpt2"), tmp_path / "elsewhere")
    run = open_run(exported, backbone=str(elsewhere))
    assert run.config.backbone.name == str(elsewhere)


def test_the_catalog_of_an_export_lies_where_it_is_told(exported: Path, tmp_path: Path):
    assert open_run(exported).config.data.root is None
    assert open_run(exported, str(tmp_path)).config.data.root == str(tmp_path)


def test_nothing_is_overwritten(finished_run: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*out: exists already; name a new folder"):
        export_run(finished_run, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_export_that_fails_leaves_nothing(finished_run: Path, tmp_path: Path):
    run = replace(load_run(finished_run), series={})
    with pytest.raises(KeyError):
        export(run, finished_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_beside_the_place_is_left_be(further_runs: dict[str, Path], tmp_path: Path):
    for name in (".out.new", ".out.other"):  # of the user's, or of another export to this place
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    run = load_run(further_runs["plain"])
    export(run, further_runs["plain"], tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".out.new", ".out.other", "out"]
    assert (tmp_path / ".out.new/half").read_text() == "half"
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_of_two_exports_to_one_place_the_later_is_refused_and_the_first_stays_whole(
    further_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from dist_train import export as module

    run, source, write = load_run(further_runs["plain"]), further_runs["plain"], module._write

    def overtaken(*given: Any) -> None:
        monkeypatch.setattr(module, "_write", write)
        export(run, source, tmp_path / "out")
        write(*given)

    monkeypatch.setattr(module, "_write", overtaken)
    with pytest.raises(ConfigError, match=r"--out .*out: exists already"):
        export(run, source, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert load_export(tmp_path / "out").config.data.seq_len == 48


def test_the_working_directory_is_not_replaced(
    further_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=r"--out \.: exists already"):
        export_run(further_runs["plain"], Path())
    assert Path.cwd().exists()
    assert [one.name for one in tmp_path.rglob("*")] == ["here"]


def test_an_unfinished_and_a_missing_run_are_named(finished_run: Path, tmp_path: Path):
    unfinished = shutil.copytree(finished_run, tmp_path / "run")
    (unfinished / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"run: not a finished run .*--resume auto"):
        export_run(unfinished, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_and_an_export_are_told_apart(finished_run: Path, exported: Path):
    assert is_export(exported)
    assert not is_export(finished_run)
    assert open_run(finished_run).config.name == open_run(exported).config.name


def test_a_best_model_that_has_changed_since_it_was_loaded_is_not_exported(
    finished_run: Path, tmp_path: Path
):
    run = replace(load_run(finished_run), checksum="of another model")
    with pytest.raises(CheckpointError, match="has changed since it was loaded.*load it again"):
        export(run, finished_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
