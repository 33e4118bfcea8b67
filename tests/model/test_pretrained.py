"""model/pretrained.py: load, forecast, explain, hand on; and the published model's call."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from model import TimeLLM
from tests.helpers.runs import losses

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def long_model(further_runs: dict[str, Path]) -> TimeLLM:
    return TimeLLM.from_pretrained(further_runs["long"])


@pytest.fixture(scope="module")
def long_frame(long_model: TimeLLM) -> pd.DataFrame:
    return pd.read_csv(str(long_model._run.config.data.path)).groupby("unique_id").tail(60)


@pytest.fixture
def plain_model(further_runs: dict[str, Path]) -> TimeLLM:
    return TimeLLM.from_pretrained(str(further_runs["plain"]), device="cpu")


def test_the_package_is_light_until_the_door_is_opened():
    code = (
        "import sys, model; assert 'torch' not in sys.modules and 'pandas' not in sys.modules;"
        "from model import TimeLLM; assert 'dist_train' not in sys.modules;"
        "assert TimeLLM.__name__ == 'TimeLLM'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_there_is_nothing_else_behind_the_door():
    import model

    with pytest.raises(AttributeError, match="has no attribute 'Forecast'"):
        model.Forecast  # noqa: B018


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(180)), reverse=st.booleans())
def test_forecasts_are_the_same_bits_in_any_order(
    long_model: TimeLLM, long_frame: pd.DataFrame, order: list[int], reverse: bool
):
    straight = long_model.predict(long_frame)
    mixed = long_frame.iloc[order]
    mixed = mixed[list(mixed.columns)[:: -1 if reverse else 1]]
    pd.testing.assert_frame_equal(long_model.predict(mixed), straight, check_exact=True)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(["date", "v0", "v1"]))
def test_the_order_of_columns_changes_no_bit(finished_run: Path, order: list[str]):
    model = TimeLLM.from_pretrained(finished_run)
    frame = pd.read_csv(str(model._run.config.data.path)).tail(60)
    straight = model.predict(frame)
    pd.testing.assert_frame_equal(model.predict(frame[order]), straight, check_exact=True)


def test_pandas_and_polars_get_the_same_numbers(long_model: TimeLLM, long_frame: pd.DataFrame):
    result = long_model.predict(pl.from_pandas(long_frame), 3, level=[90])
    assert isinstance(result, pl.DataFrame)
    expected = long_model.predict(long_frame, 3, level=[90])
    pd.testing.assert_frame_equal(result.to_pandas(), expected, check_dtype=False)


def test_cross_validation_and_explanation_are_behind_the_same_door(
    long_model: TimeLLM, long_frame: pd.DataFrame
):
    result = long_model.cross_validation(long_frame, 2, 3, horizon=4, level=[])
    assert len(result) == 3 * 2 * 4
    assert result["cutoff"].nunique() == 2
    explanation = long_model.explain(long_frame)
    assert len(explanation.rows) == 3
    assert len(explanation.histories) == 15


def test_it_is_saved_and_comes_back(long_model: TimeLLM, long_frame: pd.DataFrame, tmp_path: Path):
    long_model.save_pretrained(tmp_path / "saved")
    again = TimeLLM.from_pretrained(tmp_path / "saved")
    pd.testing.assert_frame_equal(again.predict(long_frame), long_model.predict(long_frame))
    with pytest.raises(ValueError, match=r"^folder=.*saved: exists already; name a new folder"):
        long_model.save_pretrained(tmp_path / "saved")


def test_forecasting_leaves_the_mode_as_it_was(plain_model: TimeLLM):
    frame = pd.read_csv(str(plain_model._run.config.data.path)).tail(60)
    assert not plain_model.training
    evaluated = plain_model.predict(frame, level=[])
    plain_model.train()
    pd.testing.assert_frame_equal(plain_model.predict(frame, level=[]), evaluated)
    assert plain_model.training
    assert plain_model.forecaster.training
    assert not plain_model.forecaster.backbone.language_model.training


def test_called_like_the_published_model_it_forecasts_as_the_run_does(
    further_runs: dict[str, Path],
):
    for name in ("plain", "long"):
        run, model = load_run(further_runs[name]), TimeLLM.from_pretrained(further_runs[name])
        data = load_forecast_data(run.config.data)
        windows = data.windows["test"]
        ids = [len(windows) - 1]  # of the last series; no entry is later than what it may see
        context, target = (torch.from_numpy(part) for part in windows.batch(ids))
        from dist_train.data.collate import Collator

        batch = Collator(windows, run.prompt_builder)(ids)
        expected = run.forecast(batch, "test")
        with torch.no_grad():
            output = model(context, torch.zeros(1, 48, 4), torch.zeros_like(target), None)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        assert output.shape == target.shape


class Experiment:
    """The steps of TSLib's long-term experiment: build, train, validate, save, load, test."""

    def __init__(self, model: nn.Module, data: Any, device: str = "cpu") -> None:
        self.model, self.data, self.device = model.float().to(device), data, device
        self.pred_len, self.label_len, self.features = 12, 24, "M"

    def batches(self, flag: str, size: int = 16) -> Any:
        windows = self.data.windows[flag]
        for first in range(0, min(len(windows), 96), size):
            x, y = windows.batch(list(range(first, min(first + size, len(windows)))))
            x, y = torch.from_numpy(x), torch.from_numpy(y)
            y = torch.cat([x[:, -self.label_len :], y], dim=1)
            yield x, y, torch.zeros(*x.shape[:2], 4), torch.zeros(*y.shape[:2], 4)

    def outputs(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch_x, batch_y, x_mark, y_mark = (part.float().to(self.device) for part in batch)
        decoder = torch.zeros_like(batch_y[:, -self.pred_len :, :]).float()
        decoder = torch.cat([batch_y[:, : self.label_len, :], decoder], dim=1).float()
        outputs = self.model(batch_x, x_mark, decoder, y_mark)
        f_dim = -1 if self.features == "MS" else 0
        return outputs[:, -self.pred_len :, f_dim:], batch_y[:, -self.pred_len :, f_dim:]

    def train(self, path: Path, epochs: int = 2) -> list[float]:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        criterion, found = nn.MSELoss(), []
        for _ in range(epochs):
            self.model.train()
            for batch in self.batches("train"):
                optimizer.zero_grad()
                loss = criterion(*self.outputs(batch))
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        torch.save(self.model.state_dict(), path / "checkpoint.pth")
        return found

    def test(self) -> np.ndarray:
        self.model.eval()
        with torch.no_grad():
            return np.concatenate(
                [self.outputs(batch)[0].numpy() for batch in self.batches("test")]
            )


def test_an_experiment_of_tslib_trains_it_as_it_is(
    plain_model: TimeLLM, further_runs: dict[str, Path], tmp_path: Path
):
    data = load_forecast_data(plain_model._run.config.data)
    frozen = {n: p.clone() for n, p in plain_model.named_parameters() if not p.requires_grad}
    experiment = Experiment(plain_model, data)
    before = experiment.test()
    found = experiment.train(tmp_path)
    assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6])
    assert losses(further_runs["plain"])
    after = experiment.test()
    assert not np.allclose(before, after)
    assert all(torch.equal(p, frozen[n]) for n, p in plain_model.named_parameters() if n in frozen)
    fresh = TimeLLM.from_pretrained(further_runs["plain"])
    fresh.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    np.testing.assert_array_equal(Experiment(fresh, data).test(), after)
    frame = pd.read_csv(str(plain_model._run.config.data.path)).tail(60)
    plain_model.save_pretrained(tmp_path / "tuned")
    tuned = TimeLLM.from_pretrained(tmp_path / "tuned")
    pd.testing.assert_frame_equal(
        tuned.predict(frame, level=[]), plain_model.predict(frame, level=[])
    )


def test_other_weights_have_no_intervals(plain_model: TimeLLM):
    frame = pd.read_csv(str(plain_model._run.config.data.path)).tail(60)
    before = plain_model.predict(frame)
    assert {"v0-lo-80", "v0-hi-95"} <= set(before.columns)
    pd.testing.assert_frame_equal(plain_model.double().float().predict(frame), before)
    data = load_forecast_data(plain_model._run.config.data)
    experiment = Experiment(plain_model, data)
    optimizer = torch.optim.SGD(plain_model.parameters(), lr=1e-2)
    plain_model.train()
    outputs, target = experiment.outputs(next(experiment.batches("train")))
    nn.functional.mse_loss(outputs, target[:, -12:]).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="no intervals: the weights were trained on"):
        after = plain_model.predict(frame)
    assert list(after.columns) == ["date", "v0", "v1"]
    for call in (plain_model.predict, plain_model.cross_validation):
        with pytest.raises(ValueError, match=r"level=\[80\]: the weights were trained on"):
            call(frame, level=[80])
    assert len(plain_model.predict(frame, level=[])) == 12


def test_with_a_memory_it_is_evaluated_and_not_trained(finished_run: Path, tmp_path: Path):
    model = TimeLLM.from_pretrained(finished_run)
    data = load_forecast_data(model._run.config.data)
    experiment = Experiment(model, data)
    assert np.isfinite(experiment.test()).all()
    with pytest.raises(ValueError, match=r"model.train\(\): this model has a memory .*own future"):
        experiment.train(tmp_path)


def test_the_call_refuses_another_length(plain_model: TimeLLM):
    with pytest.raises(ValueError, match=r"x_enc has shape \(2, 47, 2\): pass .* seq_len = 48"):
        plain_model(torch.zeros(2, 47, 2))


def test_any_number_of_variates_may_be_called_with(plain_model: TimeLLM):
    with torch.no_grad():
        three = plain_model(torch.randn(2, 48, 3, generator=torch.Generator().manual_seed(1)))
    assert three.shape == (2, 12, 3)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="^from_pretrained: user/model: no such folder; give the"):
        TimeLLM.from_pretrained("user/model")


def test_it_is_saved_after_the_process_has_gone_elsewhere(
    plain_model: TimeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain_model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model = TimeLLM.from_pretrained("model")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    model.save_pretrained("again")
    assert (tmp_path / "below/again/manifest.json").is_file()


def test_levels_may_be_an_array(long_model: TimeLLM, long_frame: pd.DataFrame):
    result = long_model.predict(long_frame, level=np.arange(50, 95, 20))
    pd.testing.assert_frame_equal(result, long_model.predict(long_frame, level=[50, 70, 90]))
