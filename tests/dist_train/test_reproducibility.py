"""dist_train/reproducibility.py: seeds reach every generator, code and versions have a name."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train import reproducibility
from dist_train.reproducibility import code_fingerprint, environment, seed_everything


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_a_seed_reaches_python_numpy_and_torch():
    seed_everything(3)
    first = draws()
    between = draws()
    seed_everything(3)
    assert draws() == first
    assert all(one != other for one, other in zip(first, between, strict=True))
    seed_everything(4)
    assert all(one != other for one, other in zip(first, draws(), strict=True))


def test_a_seed_may_be_larger_than_numpy_takes():
    seed_everything(2**32 + 5)  # numpy alone would raise
    first = draws()
    seed_everything(2**32 + 5)
    assert draws() == first


@pytest.fixture
def copied_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages, which the fingerprint is taken of."""
    root = Path(reproducibility.__file__).parents[1]
    for package in reproducibility.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, tmp_path / package, ignore=ignored)
    copy = tmp_path / "dist_train/reproducibility.py"
    monkeypatch.setattr(reproducibility, "__file__", str(copy))
    return tmp_path


def test_the_same_code_elsewhere_has_the_same_fingerprint(copied_code: Path):
    before = code_fingerprint()
    (copied_code / "model/__pycache__").mkdir()
    (copied_code / "model/__pycache__/config.pyc").write_bytes(b"compiled")
    (copied_code / "notes.md").write_text("not code")
    assert code_fingerprint() == before


def test_a_changed_added_or_renamed_file_changes_the_fingerprint(copied_code: Path):
    path = copied_code / "memory_index/config.py"
    seen = [code_fingerprint()]
    path.write_text(path.read_text() + "\n")
    seen.append(code_fingerprint())
    (copied_code / "model/new.py").touch()
    seen.append(code_fingerprint())
    (copied_code / "model/new.py").rename(copied_code / "model/newer.py")
    seen.append(code_fingerprint())
    assert len(set(seen)) == 4


def test_the_environment_names_the_versions_that_decide_numbers():
    versions = environment()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["numpy"] == np.__version__
    assert versions.keys() >= {"python", "machine", "transformers", "deepspeed", "pandas"}
