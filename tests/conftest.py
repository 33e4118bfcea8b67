"""What several test files share."""

import os
from pathlib import Path

import pytest

# Before anything of Hugging Face is imported: a test never looks for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has been trained; tests must not write into it."""
    from tests.helpers.runs import tiny_run, train_runs

    config = tiny_run(tmp_path_factory.mktemp("finished"))
    train_runs([config])
    return config.run_folder
