"""A few steps, timed on this machine."""

from launch.measured_step import measure_step
from tests.helpers.backbones import tiny_backbone
from tests.launch.test_step_memory import run_config


def test_a_step_is_timed():
    config = run_config(str(tiny_backbone("gpt2")))
    found = measure_step(config, 2, 3, "fp32")
    assert 0 < found.step_s < 60
    assert found.device in ("cpu", "cuda:0")
