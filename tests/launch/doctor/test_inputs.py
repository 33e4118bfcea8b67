"""launch/doctor/inputs.py: configuration, data and backbone as a training would meet them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import RunConfig
from dist_train.data import catalog
from dist_train.data.config import DataConfig
from launch.doctor import inputs
from launch.doctor.finding import Finding
from model.config import BackboneConfig
from tests.helpers.doctors import report, visit
from tests.helpers.runs import tiny_run


def judged(*configs: RunConfig) -> dict[str, Finding]:
    reports = [
        report(rank, "ab"[rank], **inputs.examine(visit(config)))
        for rank, config in enumerate(configs)
    ]
    return {row.check: row for row in inputs.judge(reports, visit())}


def test_a_run_that_can_begin_is_well(tmp_path: Path):
    config = tiny_run(tmp_path)
    rows = judged(config, config)
    assert {name: row.status for name, row in rows.items()} == {
        "configuration": "ok", "data": "ok", "backbone": "ok",
    }  # fmt: skip
    assert "gpt2, 4 layers" in rows["backbone"].found


def test_a_batch_that_does_not_divide_is_refused_in_the_words_of_a_training(tmp_path: Path):
    here = visit(tiny_run(tmp_path), world_size=3)
    rows = inputs.judge([report(**inputs.examine(here))], here)
    assert (rows[0].check, rows[0].status) == ("configuration", "fail")
    assert rows[0].found == "train.batch_size=8 does not divide over 3 ranks"
    assert rows[0].remedy == "Choose a multiple of 3."


def test_missing_data_is_named_with_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    well = tiny_run(tmp_path)
    missing = replace(well, data=DataConfig(dataset="ETTh1", seq_len=48, pred_len=12))
    rows = judged(well, missing)
    assert rows["data"].status == "fail"
    assert rows["data"].found.startswith("rank 1 (b): data.dataset=ETTh1: its file ETTh1.csv was")
    assert "data.root" in rows["data"].remedy
    assert rows["backbone"].status == "ok"


def test_other_data_on_another_node_is_a_failure(tmp_path: Path):
    well = tiny_run(tmp_path)
    other = tmp_path / "other.csv"
    other.write_text("\n".join(Path(str(well.data.path)).read_text().splitlines()[:-1]) + "\n")
    rows = judged(well, replace(well, data=replace(well.data, path=str(other))))
    assert rows["data"].status == "fail"
    assert rows["data"].found.startswith("it differs (checksum): ")
    assert rows["configuration"].status == "fail"  # the ranks were started differently


def test_a_file_that_is_not_the_published_one_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    well = tiny_run(tmp_path)
    entry = replace(
        catalog.CATALOG["ETTh1"], file="series.csv", sha256="0" * 64, frequency="h",
        borders=(0.7, 0.1, 0.2),
    )  # fmt: skip
    monkeypatch.setitem(catalog.CATALOG, "ETTh1", entry)
    data = DataConfig(dataset="ETTh1", root=str(tmp_path), seq_len=48, pred_len=12)
    rows = judged(replace(well, data=data))
    assert rows["data"].status == "warn"
    assert "that of the published file 000000000000..." in rows["data"].found


def test_what_else_a_training_refuses_is_refused(tmp_path: Path):
    well = tiny_run(tmp_path)
    rows = judged(replace(well, train=replace(well.train, batch_size=10**6)))
    assert rows["configuration"].status == "fail"
    assert "is more than the" in rows["configuration"].found
    assert rows["data"].status == "ok"


def test_a_backbone_that_is_not_here_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path / "cache"))
    config = replace(tiny_run(tmp_path), backbone=BackboneConfig(name="smollm2-135m"))
    rows = judged(config)
    assert rows["backbone"].status == "fail"
    assert "model.backbone_files fetch" in rows["backbone"].remedy
    assert not (tmp_path / "cache").exists()
    assert rows["configuration"].status == "skip"


def test_a_backbone_that_was_cut_off_is_found(tmp_path: Path):
    config = tiny_run(tmp_path)
    folder = tmp_path / "backbone"
    shutil.copytree(config.backbone.name, folder)
    config = replace(config, backbone=replace(config.backbone, name=str(folder)))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    row = judged(config)["backbone"]
    assert row.status == "fail"
    assert "model.safetensors has" in row.found
    assert row.remedy == "Copy or download it again."
