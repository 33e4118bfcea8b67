"""configs/: every file loads, is named after its run, and begins with its command."""

from pathlib import Path

import pytest

from dist_train.config import load_run_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_loads(path: Path):
    config = load_run_config(path)
    assert config.name == path.stem
    first = path.read_text().splitlines()[0]
    assert first.startswith(("# make ", "# timellm ", "# launch/", "# python -m benchmarks."))


def test_there_are_configs():
    assert CONFIGS
