"""dist_train/preflight.py: what can be refused before torch is imported, is."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import preflight
from dist_train.config import ConfigError, RunConfig, config_to_yaml
from dist_train.data.config import DataError
from tests.helpers.runs import tiny_run

ROOT = Path(__file__).parents[2]

CHECK_WITHOUT_TORCH = """
import sys
from pathlib import Path
from dist_train import preflight
from dist_train.config import load_run_config
preflight.check(load_run_config(Path(sys.argv[1])))
print(sorted({"torch", "transformers", "deepspeed"} & set(sys.modules)))
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_run(tmp_path)


def test_data_and_backbone_come_back_ready_for_use(config: RunConfig):
    checked = preflight.check(config)
    assert checked.data.num_variates == 2
    assert len(checked.data.windows["train"]) == 361
    assert checked.backbone_files.num_layers == 4


def test_nothing_heavy_is_imported(config: RunConfig, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    command = [sys.executable, "-c", CHECK_WITHOUT_TORCH, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"train.batch_size=8 does not divide over 3 ranks"):
        preflight.check(config)


def test_a_batch_larger_than_the_training_split_is_refused(config: RunConfig):
    config = replace(config, train=replace(config.train, batch_size=362))
    message = r"train.batch_size=362 is more than the 361 training windows: lower it"
    with pytest.raises(ConfigError, match=message):
        preflight.check(config)
    preflight.check(replace(config, train=replace(config.train, batch_size=361)))


def test_too_many_layers_are_refused(config: RunConfig):
    config = replace(config, backbone=replace(config.backbone, llm_layers=5))
    message = r"backbone.llm_layers=5: .* has 4 layers; use at most 4"
    with pytest.raises(ValueError, match=message):
        preflight.check(config)


def test_an_unknown_backbone_is_refused(config: RunConfig):
    config = replace(config, backbone=replace(config.backbone, name="no such model"))
    with pytest.raises(ValueError, match=r"backbone.name=no such model: .* not a hub name"):
        preflight.check(config)


def test_unusable_data_is_refused(config: RunConfig):
    config = replace(config, data=replace(config.data, path="nowhere.csv"))
    with pytest.raises(DataError, match=r"data.path=nowhere.csv does not exist"):
        preflight.check(config)
