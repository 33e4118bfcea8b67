"""A disk that is full ends no training, and costs nothing but what could not be written."""

import json
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from dist_train import distributed, preflight, report
from dist_train.checkpoint import load_checkpoint
from dist_train.config import CheckpointConfig, RunConfig, fail
from dist_train.session import Resume, train_and_score
from dist_train.trainer import Trainer
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.interrupted import quick
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run
from tests.helpers.small_disk import fill, small_disk

pytestmark = pytest.mark.ranks

STEPS, FULL_AFTER, FREE_AFTER = 12, 5, 8


def run_on(disk: Path, folder: Path, name: str) -> RunConfig:
    """A bank is begun after steps 3, 6, 9 and searched from one step later on."""
    base = tiny_run(folder, name=name, runs_dir=str(disk))
    return replace(
        base,
        gram=GramConfig(use_gram=True, d_repr=16, refresh_every=3, refresh_lag=1),
        bank=BankConfig(shard_group="world"),
        train=replace(base.train, max_steps=STEPS, eval_every=4, learning_rate=1e-2),
        checkpoint=CheckpointConfig(save_steps=2, save_total_limit=2),
    )


def lines(config: RunConfig) -> list[dict[str, Any]]:
    text = (config.run_folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def fill_in_between(
    patch: pytest.MonkeyPatch, rank: int, ballast: Path, while_full: Callable[[], None]
) -> None:
    """Let the disk be full while the steps between FULL_AFTER and FREE_AFTER are done."""
    train_step: Callable[..., None] = Trainer._train_step

    def step_and_fill(trainer: Trainer, *given: Any) -> None:
        if trainer.state.step in (FULL_AFTER, FREE_AFTER):
            trainer.writer.wait()
            distributed.barrier()
            if rank == 0 and trainer.state.step == FULL_AFTER:
                fill(ballast)
            elif rank == 0:
                while_full()
                ballast.unlink()
            distributed.barrier()
        train_step(trainer, *given)

    patch.setattr(Trainer, "_train_step", step_and_fill)


def train_on_a_full_disk(rank: int, world_size: int, config: RunConfig, out: Path) -> None:
    def while_full() -> None:
        for name in ("step_2", "step_4", "best"):
            load_checkpoint(config.run_folder / name)

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        fill_in_between(patch, rank, Path(config.runs_dir) / "ballast", while_full)
        with redirect_stderr(StringIO()) as said:
            train_and_score(config, preflight.check(config))
    (out / f"said-{rank}").write_text(said.getvalue())


def report_to_a_full_disk(rank: int, world_size: int, config: RunConfig, out: Path) -> None:
    ballast = Path(config.runs_dir) / "ballast"
    write = report.write

    def fill_and_write(*given: Any) -> None:
        fill(ballast)
        write(*given)

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        with patch.context() as full:
            full.setattr(report, "write", fill_and_write)
            with pytest.raises(Exception, match="No space left on device") as ended:
                train_and_score(config, preflight.check(config))
        distributed.barrier()
        if rank == 0:
            with redirect_stderr(StringIO()) as said:
                assert fail(ended.value) == 2  # type: ignore[arg-type]
            (out / "refused").write_text(said.getvalue())
            assert not (config.run_folder / "result.json").exists()
            ballast.unlink()
        distributed.barrier()
        patch.setattr(Trainer, "_train_step", lambda *given: pytest.fail("trained again"))
        train_and_score(config, preflight.check(config), Resume(where="auto"))


def do_both(rank: int, world_size: int, configs: list[RunConfig], out: Path) -> None:
    train_on_a_full_disk(rank, world_size, configs[0], out)
    report_to_a_full_disk(rank, world_size, configs[1], out)


def test_training_goes_on_through_a_full_disk_and_a_report_is_written_later(tmp_path: Path):
    with small_disk(tmp_path / "disk", 48 * 1024) as disk:
        config, late = (run_on(disk, tmp_path, name) for name in ("full", "late"))
        run_ranks(do_both, 2, [config, late], tmp_path, timeout_s=400)
        said = (tmp_path / "said-0").read_text()
        for name in ("step_6", "step_8"):
            assert f"{config.run_folder / name} could not be saved (No space left on device" in said
        assert said.count("memory could not be encoded anew") == 1
        assert "No space left on device" in said.split("could not be encoded anew")[1]
        assert "warning" not in (tmp_path / "said-1").read_text()

        result = json.loads((config.run_folder / "result.json").read_text())
        assert result["steps"] == STEPS
        steps = {line["step"]: line for line in lines(config) if "train/loss" in line}
        assert set(range(FREE_AFTER + 1, STEPS + 1)) <= set(steps)  # written again
        # The bank of step 6 was not written: the one of step 3 was searched until that of step 9.
        stale = {step: line["retrieval/staleness_steps"] for step, line in steps.items()}
        assert (stale[5], stale[10], stale[11]) == (2, 7, 2)
        names = {path.name for path in config.run_folder.iterdir()}
        assert {"step_10", "step_12", "best"} <= names
        assert not any(name.startswith((".step", ".best")) for name in names)
        assert not list((config.run_folder / "bank").glob(".*.building"))
        best = load_checkpoint(config.run_folder / "best")
        assert (best.step, best.manifest["val_mse"]) == (result["best_step"], result["val_mse"])

        refused = (tmp_path / "refused").read_text()
        assert refused.startswith(f"error: {late.run_folder}/")
        assert "No space left on device; free some space there." in refused
        assert json.loads((late.run_folder / "result.json").read_text())["steps"] == STEPS
