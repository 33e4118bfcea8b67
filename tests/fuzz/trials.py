"""Trials of one reader with the other tests: few, and the same ones every time.

``TIMELLM_FUZZ_INPUTS`` is how many files each reader is tried on instead.
"""

import os
import tempfile
from pathlib import Path

from tests.fuzz.campaign import fuzz


def assert_no_fault(reader: str, inputs: int) -> None:
    """Try a reader on hostile files, and fail with every fault and the file that shows it."""
    inputs = int(os.environ.get("TIMELLM_FUZZ_INPUTS", str(inputs)))
    tried, faults = fuzz(reader, inputs, Path(tempfile.mkdtemp(prefix="fuzz-")))
    assert not faults, "\n".join(faults)
    assert tried >= inputs
