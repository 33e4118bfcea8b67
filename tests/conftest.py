"""What several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Before anything of Hugging Face is imported: a test never looks for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nor does a training that is not about wandb wait for its start, of some seconds.
os.environ["WANDB_MODE"] = "disabled"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has been trained; tests must not write into it."""
    from tests.helpers.runs import tiny_run, train_runs

    config = tiny_run(tmp_path_factory.mktemp("finished"))
    train_runs([config])
    return config.run_folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> "Iterator[list[Figure]]":
    """The figures that were drawn, kept from being closed until the test ends."""
    from matplotlib import pyplot

    figures: list[Figure] = []
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)
