"""dist_train/preflight.py: what can be refused before torch is imported, is."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_train import preflight
from dist_train.config import ConfigError, RunConfig, config_to_yaml
from dist_train.data.config import DataError
from tests.helpers.runs import tiny_run
from tests.helpers.sources import tiny_corpus_run

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


def test_the_ranks_and_the_data_may_be_those_of_a_run_that_is_yet_to_start(config: RunConfig):
    with pytest.raises(ConfigError, match=r"train.batch_size=8 does not divide over 3 ranks"):
        preflight.check(config, ranks=3)
    data = preflight.check(config, ranks=4).data
    gone = replace(config, data=replace(config.data, path="nowhere.csv"))
    assert preflight.check(gone, data=data).data is data


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


def test_the_identity_changes_with_all_that_decides_the_numbers(tmp_path: Path):
    config = tiny_run(tmp_path)
    own = tmp_path / "ds.json"
    own.write_text("{}")
    with_json = replace(config, deepspeed=replace(config.deepspeed, config_file=str(own)))

    def identity(run: RunConfig, ranks: int = 1) -> str:
        return preflight.identity(run, preflight.check(run), ranks)

    first = identity(config)
    assert identity(replace(config, name="other", runs_dir="elsewhere")) == first
    seen = [first, identity(config, ranks=2), identity(with_json)]
    seen.append(identity(replace(config, train=replace(config.train, seed=5))))
    own.write_text('{"wall_clock_breakdown": true}')
    seen.append(identity(with_json))
    series = tmp_path / "series.csv"
    series.write_text(series.read_text().replace("2020-", "2021-"))
    seen.append(identity(config))
    assert len(set(seen)) == len(seen)


def test_refuses_a_head_wider_than_the_backbone(tmp_path: Path):
    config = tiny_run(tmp_path)
    config = replace(config, model=replace(config.model, d_ff=600))
    with pytest.raises(ConfigError, match=r"model.d_ff=600: .* has 32; use at most 32"):
        preflight.check(config)


def test_refuses_more_tokens_than_the_backbone_has_positions(tmp_path: Path):
    config = tiny_run(tmp_path)
    config = replace(config, model=replace(config.model, max_prompt_tokens=505))
    with pytest.raises(ConfigError, match=r"up to 519 per row, and .* has 512 positions"):
        preflight.check(config)


def test_a_profile_of_more_steps_than_the_run_has_is_refused(config: RunConfig):
    short = replace(config.train, profile=True, profile_steps=3, max_steps=4)
    message = r"train.profile_steps=3: a profile leaves out 2 steps and needs 5 in all, and this"
    with pytest.raises(ConfigError, match=message):
        preflight.check(replace(config, train=short))
    epochs = replace(short, max_steps=None, max_epochs=2, batch_size=180)  # four steps as well
    with pytest.raises(ConfigError, match=r"this run has 4: lower train.profile_steps"):
        preflight.check(replace(config, train=epochs))
    preflight.check(replace(config, train=replace(short, max_steps=5)))
    preflight.check(replace(config, train=replace(short, profile=False)))


def test_sources_of_different_frequency_share_a_memory(tmp_path: Path):
    data = preflight.check(tiny_corpus_run(tmp_path)).data
    assert data.series_set.frequency is None
    assert [one.series_set.frequency for one in data.sources] == ["h", "15min"]


def test_a_source_whose_series_share_no_clock_is_refused(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    data = preflight.check(config).data
    one = data.sources[0].series_set.series[0]
    between = replace(one, id="between", dates=one.dates + np.timedelta64(7, "m"))
    series_set = replace(data.sources[0].series_set, series=(one, between))
    sources = (replace(data.sources[0], series_set=series_set), data.sources[1])
    words = r"data.sources\[0\] \(.*'between' overlap in time but share no .* memory_percent: 0"
    with pytest.raises(DataError, match=words):
        preflight.check(config, data=replace(data, sources=sources))
    sources = (replace(sources[0], memory_percent=0), sources[1])
    preflight.check(config, data=replace(data, sources=sources))


def test_sources_that_have_no_training_window_between_them_are_refused(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    sources = [replace(one, percent=1, too_short="skip") for one in config.data.sources or ()]
    with pytest.raises(ConfigError, match="none of them has a training window: raise percent"):
        preflight.check(replace(config, data=replace(config.data, sources=sources)))


def test_a_longest_horizon_that_has_no_training_window_is_refused(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    assert config.data.sources is not None
    hours, quarters = config.data.sources
    sources = [replace(hours, percent=1, too_short="skip"), replace(quarters, pred_len=3)]
    said = r"data.pred_len=8: .* have training windows have at most pred_len=3, .* lower .* to 3"
    with pytest.raises(ConfigError, match=said):
        preflight.check(replace(config, data=replace(config.data, sources=sources)))
