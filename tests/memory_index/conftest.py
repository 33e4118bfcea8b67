"""What the tests of the memory share."""

from collections.abc import Iterator

import pytest
import torch

from tests.memory_index.real_windows import RealWindows, read_real_windows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads have no fixed order, and these tests compare bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def anchored_windows() -> RealWindows:
    return read_real_windows("anchored")


@pytest.fixture(scope="session")
def dual_windows() -> RealWindows:
    return read_real_windows("dual")
