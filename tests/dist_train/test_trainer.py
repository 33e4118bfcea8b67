"""dist_train/trainer.py: when training stops, what is kept, and what is written down."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train import trainer
from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig
from dist_train.data.windows import load_forecast_data
from dist_train.evaluation import score_split
from dist_train.loading import load_run
from dist_train.preflight import check
from dist_train.session import train_and_score
from model.config import GramConfig, TaprConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import STEPS, tiny_run, train_each

pytestmark = pytest.mark.ranks

PATIENCE = 3
EVALUATION_S, STEP_S = 0.3, 0.05  # added where a test looks at the clock


def plain_run(folder: Path, name: str, anchor: str = "ridge", **train: object) -> RunConfig:
    """A tiny run without the enhancements, which makes it quick and its course known."""
    base = tiny_run(
        folder, name=name, tapr=TaprConfig(use_tapr=False), gram=GramConfig(use_gram=False)
    )
    model = replace(base.model, anchor=anchor)
    return replace(base, model=model, train=replace(base.train, **train))  # type: ignore[arg-type]


def train_all(rank: int, world_size: int, configs: list[RunConfig], slow: RunConfig) -> None:
    train_each(rank, world_size, configs)
    score, step = trainer.score_split, trainer.Trainer._train_step

    def slow_score(*args: Any, **options: Any) -> Any:
        time.sleep(EVALUATION_S)
        return score(*args, **options)

    def slow_step(*args: Any, **options: Any) -> None:
        step(*args, **options)
        time.sleep(STEP_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "score_split", slow_score)
        patch.setattr(trainer.Trainer, "_train_step", slow_step)
        train_each(rank, world_size, [slow])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file; they share one start of DeepSpeed."""
    folder = tmp_path_factory.mktemp("trainer")
    shaky = plain_run(
        folder, "shaky", "none", learning_rate=0.1, schedule="constant", patience=PATIENCE,
        eval_every=2, max_steps=60,
    )  # fmt: skip
    epochs = plain_run(folder, "epochs", max_steps=None, max_epochs=2, batch_size=180, log_every=3)
    careful = plain_run(
        folder, "careful", max_steps=12, eval_every=1, batch_size=90, learning_rate=2e-4,
        selection="one_standard_error", patience=5,
    )  # fmt: skip
    # Validation falls between two lines of metrics, which must not lose the steps before it.
    slow = plain_run(folder, "slow", max_steps=12, log_every=6, eval_every=5)
    run_ranks(train_all, 1, [shaky, epochs, careful], slow, timeout_s=400)
    return folder / "runs"


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["val/mse"] for line in lines(run) if "val/mse" in line}


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def where_patience_ends(scores: dict[int, float], patience: int) -> int | None:
    """The step at which a run with these validations stops, by the rule in words."""
    best, bad = float("inf"), 0
    for step, mse in scores.items():
        best, bad = (mse, 0) if mse < best else (best, bad + 1)
        if bad == patience:
            return step
    return None


def test_training_stops_after_patience_validations_without_improvement(runs: Path):
    scores = validations(runs / "shaky")
    improvements = sum(
        mse == min([*scores.values()][: n + 1]) for n, mse in enumerate(scores.values())
    )
    assert len(scores) - improvements > PATIENCE  # some setbacks were overcome
    assert list(scores) == list(range(0, result(runs / "shaky")["steps"] + 1, 2))
    assert where_patience_ends(scores, PATIENCE) == result(runs / "shaky")["steps"] < 60


def test_best_holds_the_parameters_of_the_best_validation(runs: Path):
    scores = validations(runs / "shaky")
    best_step = min(scores, key=lambda step: scores[step])
    assert 0 < best_step < max(scores)
    manifest = load_checkpoint(runs / "shaky/best").manifest
    assert (manifest["step"], manifest["val_mse"]) == (best_step, scores[best_step])
    assert result(runs / "shaky")["best_step"] == best_step
    assert result(runs / "shaky")["val_mse"] == scores[best_step]

    run = load_run(runs / "shaky")
    data = load_forecast_data(run.config.data)
    for split, expected in (
        ("val_selection", scores[best_step]),
        ("test", result(runs / "shaky")["scores"]["Time-LLM"]["mse"]),
    ):
        sums = score_split(
            {"model": lambda batch, split=split: run.forecast(batch, split)},
            data, split, batch_size=64, prompt_builder=run.prompt_builder,
        )  # fmt: skip
        assert sums["model"].mse() == pytest.approx(expected, rel=1e-4)


def test_one_standard_error_takes_no_step_whose_gain_may_be_chance(runs: Path):
    careful = runs / "careful"
    scores = validations(careful)
    gains = {
        int(line["step"]): line["val/gain_in_se"]
        for line in lines(careful)
        if "val/gain_in_se" in line
    }
    assert gains.keys() == scores.keys() - {0}
    # Of four blocks, 49 starts with a horizon of 12, Student's law asks for 1.197.
    may = {step: mse for step, mse in scores.items() if step == 0 or gains[step] > 1.197}
    best_step = min(may, key=lambda step: may[step])
    assert result(careful)["best_step"] == best_step
    assert load_checkpoint(careful / "best").manifest["val_mse"] == scores[best_step]
    assert 0 < best_step != min(scores, key=lambda step: scores[step])  # the rule made a difference
    # Patience waits for a lower error, also where it is not taken.
    assert where_patience_ends(scores, 5) == result(careful)["steps"] < 12


def test_every_line_of_training_has_loss_learning_rate_and_speed(finished_run: Path):
    trained = [line for line in lines(finished_run) if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    for line in trained:
        assert line.keys() >= {"train/learning_rate", "perf/windows_per_s", "perf/rss_gib"}
        assert line["perf/windows_per_s"] > 0
    rates = [line["train/learning_rate"] for line in trained]
    assert max(rates) <= 1e-3
    assert rates[-1] < max(rates) / 100  # one-cycle ends near zero


def test_an_epoch_is_validated_at_its_end(runs: Path):
    # 361 training windows make two batches of 180.
    assert list(validations(runs / "epochs")) == [0, 2, 4]
    assert result(runs / "epochs")["steps"] == 4


def test_lines_come_every_log_every_steps_and_at_the_end(runs: Path):
    assert [line["step"] for line in lines(runs / "epochs") if "train/loss" in line] == [3, 4]


def diverge(rank: int, world_size: int, config: RunConfig, out: Path) -> None:
    message = (
        r"(loss is -?(nan|inf)|is not finite) in step [234], on rank 0, 1, windows .*the weights "
        r"are as they were before it.*lower train.learning_rate=1e\+30"
    )
    with pytest.raises(FloatingPointError, match=message):
        train_and_score(config, check(config))
    (out / f"refused-{rank}").touch()


def test_a_loss_that_is_not_finite_stops_every_rank(tmp_path: Path):
    absurd: dict[str, Any] = {"learning_rate": 1e30, "schedule": "constant", "log_every": 4}
    run_ranks(diverge, 2, plain_run(tmp_path, "absurd", **absurd), tmp_path)
    assert (tmp_path / "refused-0").exists()
    assert (tmp_path / "refused-1").exists()
    assert not (tmp_path / "runs/absurd/result.json").exists()


def test_the_clock_of_training_stands_still_in_evaluation_and_only_there(runs: Path):
    slow = result(runs / "slow")
    evaluation_s = len(validations(runs / "slow")) * EVALUATION_S
    training_s = slow["steps"] * 8 / slow["windows_per_s"]
    assert slow["steps"] * STEP_S <= training_s <= slow["train_s"] + 0.05 - evaluation_s
