"""dist_train/closed_form.py: the better ridge is the anchor; what was solved comes back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train import closed_form, preflight
from dist_train.baselines import fit_ridge
from dist_train.build import build_forecaster
from dist_train.closed_form import ClosedForm, pack, set_solutions, unpack
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict
from model.linear_anchor import AnchorFit
from tests.helpers.runs import tiny_run


@pytest.mark.parametrize("good", [True, False])
def test_a_retrieval_anchor_worse_than_the_ridge_is_not_taken(tmp_path: Path, good: bool):
    base = tiny_run(tmp_path)
    config = replace(
        base,
        model=replace(base.model, anchor="ridge_retrieval"),
        gram=replace(base.gram, retrieval_key="anchored"),
    )
    checked = preflight.check(config)
    data = checked.data
    ridge = fit_ridge(data)
    padded = torch.nn.functional.pad(ridge.weight, (0, config.data.pred_len))
    worse = replace(ridge, weight=padded * (1.0 if good else 0.5))
    verdict = RetrievalVerdict(without=ridge, with_retrieval=worse)
    retriever = Retriever(data, config.gram, config.bank)
    retriever.refresh({})
    model = build_forecaster(config, checked.backbone_files, torch.float32)
    closed = ClosedForm(ridge=replace(ridge, weight=ridge.weight * (0.5 if good else 1.0)),
                        verdict=verdict)  # fmt: skip
    mse = set_solutions(model, config, data, closed, retriever)
    assert model.anchor is not None
    torch.testing.assert_close(model.anchor.weight, padded.float())
    if not good:
        assert mse == pytest.approx(ridge.validation_mse, rel=1e-4)


def fit(value: float, width: int) -> AnchorFit:
    weight = torch.full((2, width), value, dtype=torch.float64)
    return AnchorFit(
        weight=weight, norm="last", lam=0.1, validation_mse=value / 3, candidates={"last": {1: 2}}
    )


@pytest.mark.parametrize("judged", [True, False])
def test_what_was_solved_comes_back_out_of_tensors_and_json(judged: bool):
    verdict = RetrievalVerdict(without=fit(2.0, 3), with_retrieval=fit(3.0, 5)) if judged else None
    closed = ClosedForm(ridge=fit(1.0, 3), verdict=verdict)
    tensors, facts = pack(closed, 0.125)
    again, mse = unpack(tensors, json.loads(json.dumps(facts)))
    assert mse == 0.125
    pairs = [(closed.ridge, again.ridge)]
    assert (again.verdict is not None) is judged
    if closed.verdict is not None and again.verdict is not None:
        pairs += [
            (closed.verdict.without, again.verdict.without),
            (closed.verdict.with_retrieval, again.verdict.with_retrieval),
        ]
        assert again.verdict.helps == closed.verdict.helps
    for mine, theirs in pairs:
        assert torch.equal(mine.weight, theirs.weight)
        assert mine.weight.dtype == theirs.weight.dtype
        assert replace(mine, weight=theirs.weight, candidates={}) == theirs


def test_auto_is_decided_by_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = tiny_run(tmp_path)
    data = preflight.check(base).data
    for helps in (True, False):
        verdict = RetrievalVerdict(
            without=fit(1.0, 3), with_retrieval=fit(0.5 if helps else 2.0, 5)
        )
        monkeypatch.setattr(closed_form, "judge_retrieval", lambda *given, v=verdict, **keys: v)
        config = replace(base, gram=replace(base.gram, use_gram="auto"))
        decided, closed = closed_form.solve(config, data, None)
        assert decided.gram.use_gram is helps
        assert closed.verdict is verdict
    asked: list[object] = []
    monkeypatch.setattr(closed_form, "judge_retrieval", lambda *given, **keys: asked.append(given))
    decided, closed = closed_form.solve(base, data, None)
    assert (decided, closed.verdict, asked) == (base, None, [])
