"""Checkpoints: any file of them may be anything, its checksum in order or not."""

from pathlib import Path

import pytest

from tests.fuzz.checkpoints import MANIFEST, manifest_has_self_checksum, read, whole_files, write
from tests.fuzz.trials import assert_no_fault


@pytest.mark.skipif(
    not manifest_has_self_checksum(), reason="a checkpoint's manifest carries no checksum of itself"
)
def test_whatever_lies_in_a_checkpoint_is_read_or_refused():
    assert_no_fault("checkpoint", 300)


def test_the_whole_checkpoint_is_read(tmp_path: Path):
    read(write(tmp_path, {}))
    assert MANIFEST in whole_files()
