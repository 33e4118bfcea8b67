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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has been trained; tests must not write into it."""
    from tests.helpers.runs import tiny_run, train_runs

    config = tiny_run(tmp_path_factory.mktemp("finished"))
    train_runs([config], figures=True)
    return config.run_folder


@pytest.fixture(scope="session")
def further_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two more runs; tests must not write into them.

    ``long``: three series of one variate, a memory with an anchored key; ``plain``: no memory.
    Neither has an anchor, so that the forecasts are the language model's.
    """
    from dataclasses import replace

    from model.config import GramConfig
    from tests.helpers.runs import tiny_run, train_runs
    from tests.helpers.series import write_long_series

    folder = tmp_path_factory.mktemp("further")
    config = tiny_run(folder)
    model, train = replace(config.model, anchor="none"), replace(config.train, max_steps=6)
    config = replace(config, model=model, train=train)
    data = replace(config.data, path=str(write_long_series(folder / "long.csv")))
    anchored = GramConfig(use_gram=True, d_repr=16, retrieval_key="anchored")
    configs = {
        "long": replace(config, name="long", data=data, gram=anchored),
        "plain": replace(config, name="plain", gram=GramConfig(use_gram=False)),
    }
    train_runs(list(configs.values()))
    return {name: one.run_folder for name, one in configs.items()}


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
