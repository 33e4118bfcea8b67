"""dist_train/loading.py: the memory of a run, whatever has become of its bank on disk."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_train import distributed, memory_build
from dist_train.checkpoint import load_checkpoint
from dist_train.data.collate import Collator
from dist_train.data.windows import load_forecast_data
from dist_train.loading import LoadedRun, load_run
from dist_train.scoring import Evaluation, evaluate_run
from memory_index.manifest import ManifestError, StaleMemoryError
from memory_index.store import BankFolder, versions
from tests.helpers.permissions import obey_permissions
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import claim_other_settings


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be altered."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions of the banks that are built."""
    return count_builds(monkeypatch)


def count_builds(patch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    build = memory_build.build_bank

    def counted(folder: BankFolder, *given: Any) -> None:
        made.append(folder.version)
        build(folder, *given)

    patch.setattr(memory_build, "build_bank", counted)
    return made


def best_bank(run: Path) -> str:
    return str(load_checkpoint(run / "best").manifest["bank"])


def check_forecasts(run: LoadedRun, folder: Path) -> None:
    """Fail unless the run forecasts as well as its training reported."""
    windows = load_forecast_data(run.config.data).windows["test"]
    batch = Collator(windows, run.prompt_builder)(list(range(len(windows))))
    mse = (run.forecast(batch, "test") - batch.target).square().mean()
    result = json.loads((folder / "result.json").read_text())
    assert float(mse) == pytest.approx(result["test_mse"], abs=1e-5)


def test_a_bank_that_lies_there_is_not_built_again(run: Path, builds: list[str]):
    assert versions(run / "bank") == [best_bank(run)]
    check_forecasts(load_run(run), run)
    assert builds == []


def test_a_bank_that_is_gone_is_built_again(run: Path, builds: list[str]):
    version = best_bank(run)
    shutil.rmtree(run / "bank")
    check_forecasts(load_run(run), run)
    assert builds == versions(run / "bank") == [version]
    load_run(run)
    assert builds == [version]


def put_another_encoders_bank(run: Path) -> None:
    """Let a bank with the keys of an untrained encoder lie where the run's own should."""
    loaded = load_run(run)
    assert loaded.retriever is not None
    other = {name: value + 0.1 for name, value in loaded.retriever.snapshot().items()}
    stranger = loaded.retriever.builder.open(other)
    own = run / "bank" / best_bank(run)
    shutil.rmtree(own)
    (run / "bank" / stranger.version).rename(own)


def test_a_bank_of_another_encoder_is_built_again_or_refused(
    run: Path, builds: list[str], capsys: pytest.CaptureFixture[str]
):
    put_another_encoders_bank(run)
    never = shutil.copytree(run, run.with_name("never"))
    claim_other_settings(never, "build: auto", "build: never")
    builds.clear()
    with pytest.raises(StaleMemoryError, match=r"keys were made by the encoder .*, the queries by"):
        load_run(never)
    assert builds == []
    check_forecasts(load_run(run), run)
    assert builds == [best_bank(run)]
    assert "memory: built anew: " in capsys.readouterr().out


def test_a_run_that_may_not_build_names_what_is_missing(run: Path, builds: list[str]):
    claim_other_settings(run, "build: auto", "build: never")
    load_run(run)
    shutil.rmtree(run / "bank")
    with pytest.raises(ManifestError, match=r"bank.build=never: .*/bank holds no bank; build it"):
        load_run(run)
    assert builds == []


def everything_below(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.stat().st_mtime_ns


def load_without_writing(rank: int, world_size: int, run: Path, without: Path) -> None:
    obey_permissions()
    distributed.shut_down = lambda: None  # type: ignore[assignment]  # the group is the harness's
    with pytest.MonkeyPatch.context() as patch:
        built = count_builds(patch)
        check_without_writing(run)
        assert built == []
        check_without_writing(without)
        assert built == [best_bank(run)] * 2  # for each of load_run and evaluate, to go away


def check_without_writing(run: Path) -> None:
    with pytest.raises(PermissionError):
        (run / "new").touch()
    before = list(everything_below(run))
    check_forecasts(load_run(run), run)
    scored = evaluate_run(Evaluation(run=run))
    assert scored is not None
    reported = json.loads((run / "result.json").read_text())["scores"]["Time-LLM"]["mse"]
    assert scored["scores"]["Time-LLM"]["mse"] == pytest.approx(reported, rel=1e-5)
    assert list(everything_below(run)) == before


@pytest.mark.ranks
def test_a_run_that_can_only_be_read_is_loaded_and_evaluated(run: Path):
    without = shutil.copytree(run, run.with_name("without"))
    shutil.rmtree(without / "bank")
    folders = [path for path in (run, without, *run.rglob("*"), *without.rglob("*"))
               if path.is_dir()]  # fmt: skip
    for folder in folders:
        folder.chmod(0o555)
    try:
        run_ranks(load_without_writing, 1, run, without, timeout_s=400)
    finally:
        for folder in folders:
            folder.chmod(0o755)
