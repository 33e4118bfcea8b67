"""What several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from dist_train.launcher import RANK_VARIABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dist_train.config import RunConfig

# Before anything of Hugging Face is imported: a test never looks for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests share their machine: how long an example takes, or is made, says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
# Nor does a training that is not about wandb wait for its start, of some seconds.
os.environ["WANDB_MODE"] = "disabled"


@pytest.fixture(autouse=True)
def launcher_variables() -> Iterator[None]:
    """What a launcher sets for its ranks does not outlive the test that set it."""
    before = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    yield
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(before)


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


@pytest.fixture(scope="session")
def tracked_run(tmp_path_factory: pytest.TempPathFactory) -> "RunConfig":
    """A run on two ranks with a learned key and wandb, stopped after 3 of 6 steps, and finished."""
    from dataclasses import replace

    from dist_train.tracking_config import TrackingConfig
    from model.config import GramConfig
    from tests.helpers.interrupted import interrupted, run_jobs
    from tests.helpers.runs import tiny_run

    config = tiny_run(
        tmp_path_factory.mktemp("tracked"),
        name="two-starts",
        gram=GramConfig(use_gram=True, d_repr=16, retrieval_key="dual"),
        tracking=TrackingConfig(
            wandb_mode="offline", group="a-group", tags=["short"], notes="two starts",
            histograms_every=2, panel_windows=2,
        ),
    )  # fmt: skip
    config = replace(config, train=replace(config.train, max_steps=6, eval_every=2))
    run_jobs(interrupted(config, 3), world_size=2)
    return config


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
