"""One emulated cluster for all tests of this folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster, is_available


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes; nothing of theirs may be left in the end."""
    # /tmp itself: a socket's path may have 107 signs.
    assert is_available(), "needs root and Slurm: make test-slurm installs it"
    folder = tmp_path_factory.mktemp("slurm")
    short = Path(f"/tmp/timellm-slurm-{os.getpid()}")
    short.symlink_to(folder)
    running = Cluster(short)
    try:
        yield running
    finally:
        left = running.stop()
        short.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"processes {left} were left behind"
