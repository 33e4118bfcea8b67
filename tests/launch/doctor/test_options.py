"""launch/doctor/options.py: the command line of the doctor."""

from pathlib import Path

import pytest

from dist_train.config import ConfigError, RunConfig
from launch.doctor.checkup import ALL
from launch.doctor.options import CHECKS, DoctorOptions, build_doctor_parser, parse


def test_without_arguments_the_defaults_are_looked_at():
    assert parse([]) == (RunConfig(), DoctorOptions())


def test_a_run_s_configuration_and_the_doctor_s_options_go_together(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("name: x\ndata: {seq_len: 96}\n")
    given = ["--config", str(file), "--train.batch_size", "8", "--world_size", "4"]
    given += ["--timeout_s", "5", "--size_mib", "1", "64", "--skip", "disk", "links", "--json"]
    given += ["--write_mib", "2", "--free_gib", "0", "--local_rank=1", "--resume", "auto"]
    config, options = parse(given)
    assert (config.name, config.data.seq_len, config.train.batch_size) == ("x", 96, 8)
    assert options == DoctorOptions(
        world_size=4, timeout_s=5, size_mib=(1, 64), skip=("disk", "links"), json=True,
        write_mib=2, free_gib=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--timeout_s", "0"], r"--timeout_s must be a positive number, got 0"),
        (["--timeout_s", "inf"], r"timeout_s"),
        (["--world_size", "0"], r"--world_size must be at least 1, got 0"),
        (["--size_mib", "-1"], r"size_mib"),
        (["--write_mib", "0"], r"--write_mib must be a positive number, got 0"),
        (["--free_gib", "-1"], r"--free_gib must not be negative, got -1"),
        (["--skip", "nothing"], r"skip"),
        (["--train.batch_sise", "8"], r"did you mean train.batch_size"),
        (["--timeout_s", "soon"], r"timeout_s"),
    ],
)
def test_wrong_arguments_are_refused(given: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse(given)


def test_help_explains_every_option():
    unexplained = [
        action.dest for action in build_doctor_parser()._actions if not (action.help or "").strip()
    ]
    assert not unexplained


def test_every_check_can_be_left_out():
    assert tuple(ALL) == CHECKS
