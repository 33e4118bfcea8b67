"""dist_train/tracking_config.py: what wandb would not take is refused before anything is built."""

from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import preflight, run_folder
from dist_train.config import RunConfig, build_parser, config_to_yaml, load_run_config
from dist_train.config import parse_run_config as parse
from dist_train.tracking_config import TrackingConfig
from tests.helpers.runs import tiny_run

OTHER = TrackingConfig(
    wandb_mode="offline", project="p", entity="e", group="g", job_type="j", tags=["a", "b"],
    notes="n", histograms_every=7, panel_windows=0, checkpoint_artifact="upload",
    finish_timeout_s=5.0, quiet=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"histograms_every": -1}, "tracking.histograms_every must not be negative, got -1: 0 is"),
        ({"panel_windows": -2}, "tracking.panel_windows must not be negative, got -2: 0 is off"),
        ({"finish_timeout_s": 0.0}, "tracking.finish_timeout_s must be positive, got 0.0"),
        ({"tags": ["x" * 65]}, "tracking.tags='x+': wandb takes tags of 1 to 64 signs; shorten it"),
        ({"tags": [""]}, "tracking.tags='': wandb takes tags"),
        ({"project": "a/b"}, "tracking.project='a/b': wandb takes no empty name, .* another"),
        ({"group": ""}, "tracking.group='': wandb takes no empty name"),
    ],
)
def test_what_wandb_does_not_take_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**changes)  # type: ignore[arg-type]


def test_all_of_it_is_saved_and_loads_back_equal(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(config_to_yaml(RunConfig(tracking=OTHER)))
    assert load_run_config(tmp_path / "run.yaml").tracking == OTHER


def test_quiet_is_short_for_its_key_also_where_a_file_names_it(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("tracking: {quiet: false}\n")
    arguments = ["--config", str(tmp_path / "run.yaml")]
    parser = build_parser("timellm train")
    assert not parse(parser, arguments)[0].tracking.quiet
    for argv in (["--quiet", *arguments], [*arguments, "--quiet"]):
        assert parse(parser, argv)[0].tracking.quiet


def test_none_of_it_is_part_of_what_a_run_is(tmp_path: Path):
    config = tiny_run(tmp_path)
    checked = preflight.check(config)
    other = replace(config, tracking=OTHER)
    assert preflight.identity(other, checked, 2) == preflight.identity(config, checked, 2)
    assert run_folder.differences(other, config) == []
    longer = replace(config, data=replace(config.data, seq_len=60))
    assert run_folder.differences(longer, config) == ["data.seq_len (48, now 60)"]
