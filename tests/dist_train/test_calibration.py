"""dist_train/calibration.py: validation alone, every rank alike, nothing altered is read."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dist_train import calibration, distributed
from dist_train.baselines import repeat_last
from dist_train.checkpoint import CheckpointError
from dist_train.conformal import Calibration, bounds_of, channel_floor, supported_levels
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.loading import load_run
from dist_train.stop_signals import StopRequestedError
from tests.helpers.forecast_data import data_of_sources, long_data, source_of, wide_data
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import change_manifest

SEQ_LEN, PRED_LEN = 24, 6


def series(rows: int = 1600, variates: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(rows, variates)), axis=0) * np.arange(1, variates + 1)


def made(data: ForecastData, batch_size: int = 32) -> Calibration:
    return calibration.calibrate(repeat_last, data, batch_size=batch_size)


def test_it_is_left_between_two_batches():
    calls = iter(range(3))

    def between() -> None:
        if next(calls) == 2:
            raise StopRequestedError("SIGTERM")

    forecasts = list[WindowBatch]()

    def forecasting(batch: WindowBatch) -> Tensor:
        forecasts.append(batch)
        return repeat_last(batch)

    data = wide_data(series(), SEQ_LEN, PRED_LEN)
    with pytest.raises(StopRequestedError):
        calibration.calibrate(forecasting, data, batch_size=16, between=between)
    assert len(forecasts) == 2


def test_its_bounds_are_those_of_a_computation_at_once():
    data = wide_data(series(), SEQ_LEN, PRED_LEN)
    known = made(data)
    windows = data.windows["val"]
    context, target = windows.batch(range(len(windows)))
    errors = np.swapaxes(target - context[:, -1:], 1, 2)
    variance = np.var(context, axis=1, dtype=np.float64)
    floor = channel_floor(variance)
    spread = np.sqrt(variance + floor.astype(np.float64) ** 2)
    lower, upper = bounds_of(errors / spread[..., None], supported_levels(len(windows)))
    assert known.num_windows == len(windows) == 1600 // 10 - PRED_LEN + 1
    assert known.levels == supported_levels(len(windows))
    np.testing.assert_allclose(known.lower, lower, rtol=1e-5)
    np.testing.assert_allclose(known.upper, upper, rtol=1e-5)
    np.testing.assert_allclose(known.floor, floor, rtol=1e-6)
    assert known.facts["split"] == "val"
    assert known.facts["windows_forecast"] == known.facts["windows_of_split"] == len(windows)


def test_rows_of_the_test_split_change_nothing():
    values = series()
    other = values.copy()
    other[int(len(values) * 0.8) :] = 1e3
    first, second = (made(wide_data(one, SEQ_LEN, PRED_LEN)) for one in (values, other))
    np.testing.assert_array_equal(first.lower, second.lower)
    np.testing.assert_array_equal(first.floor, second.floor)


def test_many_windows_are_sampled_evenly_and_the_bound_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MAX_WINDOWS", 120)
    monkeypatch.setattr(calibration, "WINDOWS_PER_SERIES", 0)
    data = wide_data(series(), SEQ_LEN, PRED_LEN)
    sample = calibration.choose_windows(data)
    assert (len(sample), sample[0], sample[-1]) == (120, 0, len(data.windows["val"]) - 1)
    known = made(data)
    assert (known.facts["windows_forecast"], known.num_windows) == (120, 120)
    monkeypatch.setattr(calibration, "MAX_ERRORS", 50 * 2 * PRED_LEN)
    assert len(calibration.choose_windows(data)) == 50


def test_channels_with_few_windows_share_their_ranks():
    rng = np.random.default_rng(3)
    parts = [(0, np.cumsum(rng.normal(size=400)) * scale) for scale in (1.0, 100.0, 1.0)]
    data = long_data(parts, SEQ_LEN, PRED_LEN)
    known = made(data)
    windows = data.windows["val"]
    assert known.shares_ranks
    assert known.lower.shape[1:] == (1, PRED_LEN)
    assert known.num_channels == 3
    assert known.num_windows == len(windows)
    channels = data.channels_of(np.arange(len(windows)), "val")
    context, target = windows.batch(range(len(windows)))
    last = np.repeat(context[:, -1:], PRED_LEN, axis=1)
    lower, upper = known.interval(last, context, channels, 80)
    assert ((target >= lower) & (target <= upper)).mean() == pytest.approx(0.8, abs=0.03)


def test_a_step_has_its_own_width_and_a_channel_too():
    known = made(wide_data(series(), SEQ_LEN, PRED_LEN))
    lower, upper = known.offsets(80)
    width = upper - lower
    assert (width[:, -1] > 1.5 * width[:, 0]).all()  # a random walk


def calibrate_to_file(rank: int, world_size: int, data: ForecastData, out: Path) -> None:
    torch.save(made(data, batch_size=7).to_tensors(), out / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_any_number_of_ranks_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = wide_data(series(), SEQ_LEN, PRED_LEN)
    for world_size in (1, 2, 3):
        run_ranks(calibrate_to_file, world_size, data, tmp_path)
    results = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))]
    assert len(results) == 6
    for tensors, facts in results[1:]:
        assert facts == results[0][1]
        for name, value in tensors.items():
            assert torch.equal(value, results[0][0][name]), name
    # In parts, as where there are many variates.
    monkeypatch.setattr(calibration, "EXCHANGED", 1)
    in_parts, _ = made(data).to_tensors()
    assert all(torch.equal(in_parts[name], value) for name, value in results[0][0].items())


def test_a_rank_without_windows_takes_part(tmp_path: Path):
    data = wide_data(series(rows=100), SEQ_LEN, PRED_LEN)
    assert len(data.windows["val"]) == 5
    run_ranks(calibrate_to_file, 7, data, tmp_path)
    alone = made(data)
    assert alone.levels[-1] == pytest.approx(80)  # ten errors of two channels that share ranks
    tensors, _ = torch.load(tmp_path / "7-6.pt", weights_only=True)
    assert torch.equal(tensors["lower"], torch.from_numpy(alone.lower))


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / run.name))


def test_a_saved_calibration_is_read_with_its_run(finished_run: Path, tmp_path: Path):
    folder = copy_of(finished_run, tmp_path)
    (folder / calibration.FILE).unlink(missing_ok=True)
    run = load_run(folder)
    assert run.calibration is None
    data = load_forecast_data(run.config.data)
    known = run.calibrated(data).calibration
    assert known is not None
    assert run.checksum is not None
    assert calibration.save(folder, known, data, weights="of a model from before") is None
    assert not (folder / calibration.FILE).exists()
    assert calibration.save(folder, known, data, weights=run.checksum) is not None
    again = load_run(folder).calibration
    assert again is not None
    np.testing.assert_array_equal(again.lower, known.lower)
    assert again.facts["data"] == data.series_set.checksum
    assert again.facts["method"] == calibration.METHOD
    assert not [path for path in folder.iterdir() if path.name.startswith(f".{calibration.FILE}")]


def test_equal_calibrations_are_equal_bytes(finished_run: Path, tmp_path: Path):
    made = calibration.load(finished_run)
    assert made is not None
    for number in range(10):  # safetensors orders several entries of metadata by chance
        calibration.write(tmp_path / str(number), made)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(10)}) == 1


def test_one_of_an_older_model_is_not_taken(finished_run: Path, tmp_path: Path):
    folder = copy_of(finished_run, tmp_path)
    data = load_forecast_data(load_run(folder).config.data)
    calibration.save(folder, made(data), data)
    assert calibration.load(folder) is not None
    change_manifest(folder, lambda manifest: manifest["sha256"].update(
        {"model.safetensors": "0" * 64}))  # fmt: skip
    assert calibration.load(folder) is None


@pytest.mark.parametrize("place", [0, 40, -1])
def test_an_altered_file_is_refused(finished_run: Path, tmp_path: Path, place: int):
    folder = copy_of(finished_run, tmp_path)
    data = load_forecast_data(load_run(folder).config.data)
    calibration.save(folder, made(data), data)
    path = folder / calibration.FILE
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="not a calibration .* makes it anew"):
        calibration.load(folder)


def zeros(batch: WindowBatch) -> Tensor:
    return torch.zeros_like(batch.target, device=distributed.device())


def test_forecasts_in_half_precision_are_measured_in_full():
    data = wide_data(series(), SEQ_LEN, PRED_LEN)

    def half(batch: WindowBatch) -> Tensor:
        return zeros(batch).to(torch.bfloat16)

    first, second = (calibration.calibrate(f, data, batch_size=16) for f in (zeros, half))
    np.testing.assert_array_equal(first.lower, second.lower)


def test_each_source_has_ranks_of_its_own():
    hours = pd.date_range("2020", periods=1500, freq="h").to_numpy()
    days = pd.date_range("2000", periods=700, freq="D").to_numpy()
    rng = np.random.default_rng(5)
    long = source_of("hours", [(hours, rng.normal(size=1500)), (hours, rng.normal(size=1500))])
    short = source_of("days", [(days, rng.normal(size=700)), (days, rng.normal(size=700))])
    both = made(data_of_sources([long, short], SEQ_LEN, PRED_LEN))
    assert both.facts["ranks_shared_by_channels_of"] == ["days"]
    alone = made(data_of_sources([long], SEQ_LEN, PRED_LEN))
    assert alone.facts["ranks_shared_by_channels_of"] == []
    levels = [alone.levels.index(level) for level in both.levels]
    np.testing.assert_array_equal(both.lower[:, :2], alone.lower[levels])
    pooled = made(data_of_sources([short], SEQ_LEN, PRED_LEN))
    assert pooled.shares_ranks
    assert both.groups is not None
    assert both.groups.tolist() == [0, 1, 2, 2]
    again = Calibration.from_tensors(*both.to_tensors())
    np.testing.assert_array_equal(again.bounds_of_channels(np.array([[3], [0]])), [[2], [0]])
    tensors, facts = both.to_tensors()
    tensors["groups"][1] = 3
    with pytest.raises(ValueError, match="do not belong together"):
        Calibration.from_tensors(tensors, facts)
    levels = [pooled.levels.index(level) for level in both.levels]
    np.testing.assert_array_equal(both.upper[:, 2], pooled.upper[levels, 0])


def test_a_source_of_a_few_errors_takes_no_level_away_and_is_ranked_with_the_others():
    hours = pd.date_range("2020", periods=1500, freq="h").to_numpy()
    days = pd.date_range("2000", periods=150, freq="D").to_numpy()
    rng = np.random.default_rng(5)
    long = source_of("hours", [(hours, rng.normal(size=1500))])
    tiny = source_of("days", [(days, rng.normal(size=150))])
    both = made(data_of_sources([long, tiny], SEQ_LEN, PRED_LEN))
    alone = made(data_of_sources([long], SEQ_LEN, PRED_LEN))
    assert both.levels == alone.levels
    assert both.facts["ranks_shared_by_channels_of"] == ["days"]
    np.testing.assert_array_equal(both.lower[:, 0], alone.lower[:, 0])
    assert not np.array_equal(both.lower[:, 1], both.lower[:, 0])


def test_a_long_source_leaves_windows_to_a_short_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MAX_WINDOWS", 20)
    monkeypatch.setattr(calibration, "WINDOWS_PER_SERIES", 0)
    sources = [
        source_of(name, [(pd.date_range("2020", periods=rows, freq="h").to_numpy(), np.ones(rows))])
        for name, rows in (("long", 20_000), ("short", 300))
    ]
    data = data_of_sources(sources, SEQ_LEN, PRED_LEN)
    sample = calibration.choose_windows(data)
    assert np.bincount(data.windows["val"].source_of(sample)).tolist() == [20, 20]
    monkeypatch.setattr(calibration, "MAX_ERRORS", 10 * PRED_LEN)
    assert len(calibration.choose_windows(data)) == 10


@pytest.mark.parametrize(("rows", "series", "sharing"), [(1500, 1, []), (700, 2, ["short"])])
def test_a_shorter_horizon_has_bounds_for_its_own_steps_alone(
    rows: int, series: int, sharing: list[str]
):
    dates = pd.date_range("2020", periods=1500, freq="h").to_numpy()
    rng = np.random.default_rng(5)
    long = source_of("long", [(dates, rng.normal(size=1500))])
    parts, steps = [(dates[:rows], rng.normal(size=rows)) for _ in range(series)], PRED_LEN - 1
    short = source_of("short", parts, pred_len=steps)
    both = made(data_of_sources([long, short], SEQ_LEN, PRED_LEN))
    alone = made(data_of_sources([source_of("short", parts)], SEQ_LEN, steps))
    assert both.facts["ranks_shared_by_channels_of"] == sharing
    levels = [alone.levels.index(level) for level in both.levels]
    np.testing.assert_allclose(both.lower[:, 1, :steps], alone.lower[levels, 0], rtol=1e-5)
    assert np.isnan(both.upper[:, 1, steps:]).all()
    assert np.isfinite(both.upper[:, 0]).all()


def test_a_tiny_source_is_ranked_with_those_that_are_forecast_as_far():
    dates = pd.date_range("2020", periods=1500, freq="h").to_numpy()
    rng = np.random.default_rng(5)
    tiny = source_of("tiny", [(dates[:200], rng.normal(size=200))])
    long = source_of("long", [(dates, rng.normal(size=1500))], pred_len=PRED_LEN - 1)
    both = made(data_of_sources([tiny, long], SEQ_LEN, PRED_LEN))
    alone = made(data_of_sources([long], SEQ_LEN, PRED_LEN - 1))
    assert both.levels == alone.levels
    # Its last step is forecast by nobody else, and its few errors cannot bound the higher levels.
    few = len(data_of_sources([tiny], SEQ_LEN, PRED_LEN).windows["val"])
    assert supported_levels(few)[-1] < both.levels[-1]
    for bounds in (both.lower, both.upper):
        np.testing.assert_array_equal(bounds[:, 0, -1], bounds[:, 0, -2])
        assert not np.array_equal(bounds[:, 0, -2], bounds[:, 0, -3])
        assert np.isfinite(bounds[:, 0]).all()
    assert np.isnan(both.upper[:, 1, -1]).all()
