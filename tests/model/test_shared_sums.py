"""One ridge of several sources against an ordinary one, step by step.

R rows, L seq_len, H horizon.
"""

from itertools import product

import numpy as np
import torch

from model.anchor_fit import LAMBDAS, NORMS, GramAccumulator, fit_anchor
from model.shared_sums import SharedSums, with_all_steps

L = 6
HORIZONS = (5, 2, 5, 3)
ROWS = 40


def source_of(seed: int, horizon: int, level: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows and targets that depend on them, of each source in its own way."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(ROWS, L, generator=generator, dtype=torch.float64) + level
    mixing = torch.randn(L, horizon, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, horizon, generator=generator, dtype=torch.float64)
    return windows, windows @ mixing / 3 + noise / 4


def sums_of(windows: torch.Tensor, targets: torch.Tensor) -> list[GramAccumulator]:
    found = []
    for norm in NORMS:
        sums = GramAccumulator(L, max(HORIZONS), norm, num_steps=targets.shape[1])
        sums.add(windows, targets)
        found.append(sums)
    return found


def centred(windows: torch.Tensor, norm: str) -> torch.Tensor:
    return windows[:, -1:] if norm == "last" else windows.mean(dim=1, keepdim=True)


def test_each_step_is_the_ridge_of_the_sources_that_forecast_it():
    train = [source_of(number, horizon) for number, horizon in enumerate(HORIZONS)]
    valid = [source_of(number + 10, horizon) for number, horizon in enumerate(HORIZONS)]
    shared = SharedSums()
    before = [sums_of(*one) for one in train]
    for mine, scored in zip(before, valid, strict=True):
        shared.add(mine, sums_of(*scored))
    fit = shared.fit()
    best = None
    for norm, lam in product(NORMS, LAMBDAS):
        columns, error, count = [], 0.0, 0
        for step in range(max(HORIZONS)):
            seen = [(x, y) for x, y in train if y.shape[1] > step]
            x_RL = torch.cat([x - centred(x, norm) for x, _ in seen])
            y_R = torch.cat([y[:, step] - centred(x, norm)[:, 0] for x, y in seen])
            weight_L = torch.linalg.solve(
                x_RL.T @ x_RL + lam * torch.eye(L, dtype=torch.float64), x_RL.T @ y_R
            )
            columns.append(weight_L)
            for x, y in valid:
                if y.shape[1] > step:
                    forecast_R = (x - centred(x, norm)) @ weight_L + centred(x, norm)[:, 0]
                    error += float((forecast_R - y[:, step]).square().sum())
                    count += len(x)
        if best is None or error / count < best[0]:
            best = error / count, norm, lam, torch.stack(columns)
    assert best is not None
    assert (fit.norm, fit.lam) == best[1:3]
    np.testing.assert_allclose(fit.weight, best[3], atol=1e-9)
    assert abs(fit.validation_mse - best[0]) < 1e-9
    for sums, again in zip(before, [sums_of(*one) for one in train], strict=True):
        torch.testing.assert_close(sums[0].gram, again[0].gram)  # they were not changed


def test_of_one_horizon_it_is_the_ridge_of_all_rows_in_one():
    parts = [source_of(number, 4) for number in range(3)]
    checked = [source_of(number + 10, 4) for number in range(3)]
    shared = SharedSums()
    for part, scored in zip(parts, checked, strict=True):
        shared.add(sums_of(*part), sums_of(*scored))
    whole = [
        sums_of(*(torch.cat(of) for of in zip(*some, strict=True))) for some in (parts, checked)
    ]
    expected = fit_anchor(*whole)
    found = shared.fit()
    assert (found.norm, found.lam) == (expected.norm, expected.lam)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-9)


def test_a_ridge_of_fewer_steps_forecasts_what_it_centres_on_for_the_rest():
    sums = sums_of(*source_of(0, 2))
    fit = with_all_steps(fit_anchor(sums, sums), 5)
    assert fit.weight.shape == (5, L)
    assert fit.weight[:2].all()
    assert not fit.weight[2:].any()
