"""model/calendar_inputs.py: each input is what its name says, and there are as many as counted."""

import numpy as np
import pytest
import torch

from model.calendar_inputs import calendar_inputs
from model.config import Calendar, num_calendar_inputs


def phase_of(year: float, day: float) -> list[float]:
    return [np.cos(year), np.sin(year), np.cos(day), np.sin(day)]


@pytest.mark.parametrize("seq_len", [1, 2, 12, 16, 17])
def test_the_day_is_waves_and_means_of_the_newest_times_waves(seq_len: int):
    rng = np.random.default_rng(seq_len)
    rows, angles = rng.normal(size=(3, seq_len)), (0.3, 2.9, -1.7)
    phase = torch.tensor([phase_of(5 * angle, angle) for angle in angles])
    found = calendar_inputs("day", torch.from_numpy(rows).float(), phase)
    assert found.shape == (3, num_calendar_inputs("day", seq_len))
    lengths = [2]
    while lengths[-1] < seq_len:
        lengths.append(2 * lengths[-1])
    means = [rows[:, -min(length, seq_len) :].mean(axis=1) for length in lengths]
    for row, angle in enumerate(angles):
        waves = [wave(k * angle) for k in (1, 2, 3) for wave in (np.cos, np.sin)]
        wanted = [1.0, *waves, *(mean[row] * wave for wave in waves[:4] for mean in means)]
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_the_year_is_the_window_twice():
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    phase = torch.tensor([phase_of(0.5, 2), phase_of(4, 1)])
    found = calendar_inputs("year", rows, phase)
    assert found.shape == (2, num_calendar_inputs("year", 5))
    torch.testing.assert_close(found[:, :5], rows * phase[:, :1])
    torch.testing.assert_close(found[:, 5:], rows * phase[:, 1:2])


@pytest.mark.parametrize("calendar", ["year", "day"])
def test_the_type_is_that_of_the_windows(calendar: Calendar):
    rows, phase = torch.ones(2, 6).double(), torch.tensor([phase_of(0, 0)] * 2).double()
    assert calendar_inputs(calendar, rows, phase).dtype == torch.float64
