"""benchmarks/ridge_head.py: the head against scikit-learn's ridge."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from benchmarks.retrievers import Windows
from benchmarks.ridge_head import score_head

LAMBDAS = (1.0, 30.0)


def random_split(seed: int, width: int) -> tuple[Windows, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    context = torch.randn(30, 2, 6, generator=rng).cumsum(-1) + 3
    inputs = torch.randn(30, 2, width, generator=rng)
    # The inputs tell something, the level of the window as well.
    told = inputs.sum(-1, keepdim=True) + context.mean(-1, keepdim=True)
    target = told + 0.3 * torch.randn(30, 2, 4, generator=rng)
    return Windows(context=context, target=target, starts=torch.arange(30)), inputs


@pytest.mark.parametrize("width", [0, 3])
def test_matches_the_best_of_scikit_learn_on_validation(width: int):
    drawn = {
        split: random_split(seed, width) for seed, split in enumerate(("train", "val", "test"))
    }

    score = score_head(
        {split: windows for split, (windows, _) in drawn.items()},
        {split: inputs for split, (_, inputs) in drawn.items()},
        LAMBDAS,
    )

    candidates = []
    for norm in ("last", "mean"):
        rows = {}
        for split, (windows, inputs) in drawn.items():
            context = windows.context.double().numpy()
            loc = context[..., -1:] if norm == "last" else context.mean(-1, keepdims=True)
            features = np.concatenate([context - loc, inputs.double().numpy()], axis=-1)
            target = windows.target.double().numpy() - loc
            rows[split] = features.reshape(60, -1), target.reshape(60, -1)
        for lam in LAMBDAS:
            ridge = Ridge(alpha=lam, fit_intercept=False).fit(*rows["train"])
            mse = {s: np.square(ridge.predict(x) - y).mean() for s, (x, y) in rows.items()}
            candidates.append((mse["val"], mse["test"], norm, lam))
    val_mse, test_mse, norm, lam = min(candidates)
    assert (score.norm, score.lam) == (norm, lam)
    np.testing.assert_allclose([score.val_mse, score.test_mse], [val_mse, test_mse], rtol=1e-6)
