"""dist_train/nonfinite.py: which windows are named, and when a run ends. On one rank."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dist_train.config import RunConfig, TrainConfig
from dist_train.nonfinite import FILE, MOST_IN_A_ROW, NonFiniteSteps
from dist_train.training_state import TrainingState

NAN, INF = float("nan"), float("inf")


def locate(ids: Any) -> tuple[Any, Any]:
    """Ten windows a series."""
    return np.asarray(ids) // 10, np.asarray(ids) % 10


DATA: Any = SimpleNamespace(
    windows={"train": SimpleNamespace(locate_batch=locate)},
    series_set=SimpleNamespace(series=[SimpleNamespace(id="north"), SimpleNamespace(id="south")]),
)


@dataclass
class Steps:
    """Steps that are left out one after the other."""

    config: RunConfig
    scales_loss: bool = False

    def __post_init__(self) -> None:
        self.config.run_folder.mkdir()
        self.state = TrainingState(step=6)
        self.steps = NonFiniteSteps(self.config, DATA, scales_loss=self.scales_loss)

    def leave_out(self, *batches: tuple[list[int], float]) -> None:
        """Window numbers and loss of each micro-batch."""
        given: Any = [SimpleNamespace(window_ids=torch.tensor(ids)) for ids, _ in batches]
        self.steps.left_out(self.state, given, [torch.tensor(loss) for _, loss in batches])

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.config.run_folder / FILE
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(name="run", runs_dir=str(tmp_path), train=TrainConfig(on_nonfinite="skip"))


def stopping(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, on_nonfinite="stop"))


def test_the_windows_of_the_bad_micro_batch_are_written_down_and_no_others(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    steps = Steps(config)
    steps.leave_out(([3, 4], 0.5), ([17, 2], INF))
    assert steps.lines == [
        {
            "step": 7,
            "rank": 0,
            "loss": "inf",
            "windows": [
                {"window": 17, "series": "south", "row": 7},
                {"window": 2, "series": "north", "row": 2},
            ],
        }
    ]
    assert (steps.state.left_out, steps.state.left_out_in_a_row, steps.state.step) == (1, 1, 6)
    assert "warning: step 7 was left out" in capsys.readouterr().err


def test_all_windows_of_the_step_are_named_where_every_loss_was_finite(config: RunConfig):
    steps = Steps(stopping(config))
    with pytest.raises(FloatingPointError, match="The gradient of a training loss of 0.5 is not"):
        steps.leave_out(([3, 4], 0.5), ([17], 0.25))
    named = [window["window"] for line in steps.lines for window in line["windows"]]
    assert named == [3, 4, 17]
    assert [line["loss"] for line in steps.lines] == ["0.5", "0.25"]


@pytest.mark.parametrize(("loss", "word"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
def test_the_message_names_step_rank_windows_and_remedies(
    config: RunConfig, loss: float, word: str
):
    steps = Steps(stopping(config))
    with pytest.raises(FloatingPointError) as caught:
        steps.leave_out(([*range(10)], loss))
    path = config.run_folder / FILE
    assert str(caught.value) == (
        f"The training loss is {word} in step 7, on rank 0, windows 0, 1, 2, 3, 4, 5, 6, 7, ... "
        f"(all in {path}); the weights are as they were before it. Look at these windows, lower "
        "train.learning_rate=0.0005, use train.precision=fp32, or leave such steps out with "
        "train.on_nonfinite=skip."
    )
    assert len(steps.lines[0]["windows"]) == 10


def test_ten_in_a_row_end_a_run_that_leaves_steps_out(config: RunConfig):
    steps = Steps(config)
    for _ in range(MOST_IN_A_ROW - 1):
        steps.leave_out(([1], NAN))
        steps.state.step += 1
    with pytest.raises(FloatingPointError, match="in step 16, .* It is number 10 in a row"):
        steps.leave_out(([1], NAN))
    assert len(steps.lines) == steps.state.left_out == MOST_IN_A_ROW == 10


def test_a_loss_scale_that_was_too_high_is_nobodys_fault(config: RunConfig):
    steps = Steps(stopping(config), scales_loss=True)
    steps.leave_out(([1], 0.5))
    assert steps.state.left_out == 0
    assert not (config.run_folder / FILE).exists()
    with pytest.raises(FloatingPointError, match="loss is nan"):
        steps.leave_out(([1], NAN))
