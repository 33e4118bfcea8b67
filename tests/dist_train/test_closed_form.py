"""dist_train/closed_form.py: the better ridge is the anchor; what was solved comes back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train import closed_form, preflight
from dist_train.baselines import fit_ridge, ridge_forecast
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.closed_form import ClosedForm, pack, set_solutions, solve, unpack
from dist_train.config import RunConfig, Selection
from dist_train.data.sources import Source
from dist_train.evaluation import score_split
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict
from dist_train.selection import block_errors, gain_in_standard_errors
from dist_train.window_errors import WindowErrors
from model.anchor_fit import AnchorFit
from model.config import NO_EXTENSION, Extension
from model.linear_anchor import LinearAnchor
from tests.helpers.runs import tiny_run
from tests.helpers.series import write_stamped
from tests.helpers.sources import run_over_sources, tiny_corpus_run


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


@pytest.mark.parametrize("selection", ["lowest", "one_standard_error"])
@pytest.mark.parametrize("clear", [True, False])
def test_a_gain_that_may_be_chance_is_left_where_one_standard_error_is_asked(
    tmp_path: Path, selection: Selection, clear: bool, capsys: pytest.CaptureFixture[str]
):
    base = tiny_run(tmp_path)
    config = replace(
        base,
        model=replace(base.model, anchor="ridge_retrieval"),
        gram=replace(base.gram, retrieval_key="anchored"),
        train=replace(base.train, selection=selection),
    )
    checked = preflight.check(config)
    data, windows = checked.data, checked.data.windows["val_selection"]
    fitted = fit_ridge(data)
    # Half of what is right is worse everywhere; a little noise is worse here and better there.
    noise = torch.randn(fitted.weight.shape, generator=torch.Generator().manual_seed(1)).double()
    spoilt = fitted.weight * 0.5 if clear else fitted.weight + 0.0008 * noise
    ridge = replace(fitted, weight=spoilt)
    start = replace(fitted, weight=F.pad(fitted.weight, (0, config.data.pred_len)))
    errors = WindowErrors(windows)
    candidates = {"ridge": ridge_forecast(ridge), "start": ridge_forecast(fitted)}
    sums = score_split(errors.watch(candidates), data, "val_selection", batch_size=64)
    blocks = {name: block_errors(each, windows) for name, each in errors.gather().items()}
    gain = gain_in_standard_errors(blocks["ridge"], blocks["start"])
    assert sums["start"].mse() < sums["ridge"].mse()
    assert (gain > 1) is clear

    retriever = Retriever(data, config.gram, config.bank)
    retriever.refresh({})
    model = build_forecaster(config, checked.backbone_files, torch.float32)
    verdict = RetrievalVerdict(without=ridge, with_retrieval=start)
    capsys.readouterr()
    set_solutions(model, config, data, ClosedForm(ridge=ridge, verdict=verdict), retriever)
    assert model.anchor is not None
    taken = clear or selection == "lowest"
    expected = start.weight if taken else F.pad(spoilt, (0, config.data.pred_len))
    torch.testing.assert_close(model.anchor.weight, expected.float())
    said = capsys.readouterr().out
    assert ("the plain ridge takes its place" in said) is not taken
    assert (f"a gain of {gain:.1f} standard errors" in said) is not taken


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


@pytest.mark.parametrize("name", ["year", "extended"])
def test_what_an_earlier_version_wrote_comes_back(name: str):
    year = replace(fit(2.0, 9), extension=Extension(calendar="year"))
    closed = ClosedForm(ridge=fit(1.0, 3), verdict=None, extended=(year,))
    tensors, facts = pack(closed, 0.5)
    tensors[name], facts["fits"][name] = (
        part.pop("extended_0") for part in (tensors, facts["fits"])
    )
    del facts["extended"]
    for known in facts["fits"].values():
        known["follows_year"] = known.pop("calendar") == "year"
        del known["deviations"], known["random_features"]
    again, _ = unpack(tensors, json.loads(json.dumps(facts)))
    (extended,) = again.extended
    assert (again.ridge.extension, extended.extension) == (NO_EXTENSION, year.extension)
    assert torch.equal(extended.weight, year.weight)


def test_weights_of_each_variate_come_back_too():
    own = replace(
        fit(2.0, 3),
        weight=torch.rand(4, 2, 3).double(),
        deviations=(None, 10.0, 1e6, None),
        extension=Extension(calendar="day", random_features=7),
    )
    tensors, facts = pack(ClosedForm(ridge=fit(1.0, 3), verdict=None, extended=(own,)), 0.5)
    again, _ = unpack(tensors, json.loads(json.dumps(facts)))
    (extended,) = again.extended
    assert torch.equal(extended.weight, own.weight)
    assert extended.deviations == own.deviations
    assert extended.extension == own.extension
    assert again.ridge.deviations == ()


@pytest.mark.parametrize("reads", [False, True])
def test_individual_weights_are_the_anchor_where_validation_likes_them(
    tmp_path: Path, reads: bool, capsys: pytest.CaptureFixture[str]
):
    base = tiny_run(tmp_path)
    config = replace(
        base,
        model=replace(
            base.model, anchor_weights="individual", anchor="ridge_retrieval" if reads else "ridge"
        ),
        gram=replace(base.gram, use_gram=reads, retrieval_key="anchored"),
    )
    checked = preflight.check(config)
    data = checked.data
    decided, closed = solve(config, data, None)
    retriever = None
    if reads:
        retriever = Retriever(data, config.gram, config.bank)
        retriever.refresh({})
    ridge, (extended,) = closed.ridge, closed.extended
    assert ridge.validation_mse == pytest.approx(fit_ridge(data).validation_mse)
    assert extended.validation_mse < ridge.validation_mse  # two variates of their own periods
    start = closed.verdict.with_retrieval if closed.verdict is not None else extended
    assert start.weight.shape == (2, 12, 48 + 12 * reads)

    def anchored(form: ClosedForm) -> torch.Tensor:
        model = build_forecaster(
            decided, checked.backbone_files, torch.float32, num_variates=data.num_variates
        )
        set_solutions(model, decided, data, form, retriever)
        assert model.anchor is not None
        return model.anchor.weight

    torch.testing.assert_close(anchored(closed), start.weight.float())
    capsys.readouterr()
    better = replace(closed, ridge=replace(ridge, weight=extended.weight.mean(dim=0)))
    worse = replace(extended, weight=0 * extended.weight)
    if closed.verdict is not None:
        nothing = replace(closed.verdict.with_retrieval, weight=0 * start.weight)
        better = replace(better, verdict=replace(closed.verdict, with_retrieval=nothing))
    shared = anchored(replace(better, extended=(worse,)))
    assert "the plain ridge takes its place" in capsys.readouterr().out
    wanted = F.pad(better.ridge.weight, (0, 12 * reads)).float()
    torch.testing.assert_close(shared, wanted.expand_as(shared))


def solved_anchor(config: RunConfig) -> tuple[ClosedForm, LinearAnchor]:
    """What a run solves before training, and the anchor that its model gets."""
    checked = preflight.check(config)
    decided, closed = solve(config, checked.data, None)
    retriever = None
    if config.gram.use_gram:
        retriever = Retriever(checked.data, config.gram, config.bank)
        retriever.refresh({})
    files, size = checked.backbone_files, checked.data.num_variates
    made = build_forecaster(decided, files, torch.float32, num_variates=size)
    set_solutions(made, decided, checked.data, closed, retriever)
    assert made.anchor is not None
    return closed, made.anchor


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("settings", ["one variate", "days", "both"])
def test_where_there_is_nothing_to_follow_the_ridge_is_as_usual(
    tmp_path: Path, reads: bool, settings: str
):
    base = tiny_run(tmp_path)
    data, model = base.data, replace(base.model, anchor="ridge_retrieval" if reads else "ridge")
    if settings != "one variate":
        values = np.random.default_rng(0).normal(size=(600, 2)).cumsum(axis=0)
        data = replace(data, path=str(write_stamped(tmp_path / "days.csv", values, "D")))
    if settings != "days":
        data = replace(data, columns=["v1"])
    gram = replace(base.gram, use_gram=reads, retrieval_key="anchored")
    plain = replace(base, data=data, model=model, gram=gram)
    more = replace(
        plain,
        model=replace(
            model,
            anchor_weights="shared" if settings == "days" else "individual",
            anchor_calendar="none" if settings == "one variate" else "day",
        ),
    )

    wanted, found = (solved_anchor(one)[1] for one in (plain, more))
    assert found.num_variates == 1
    width = wanted.weight.shape[-1]
    torch.testing.assert_close(found.weight[:, :width], wanted.weight)
    assert not found.weight[:, width:].any()
    assert found.subtracts_last == wanted.subtracts_last


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("weights", ["shared", "individual"])
def test_where_all_rows_have_one_time_of_day_features_are_without_it(
    tmp_path: Path, reads: bool, weights: Literal["shared", "individual"]
):
    base = tiny_run(tmp_path)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1500, 2))
    for row in range(1, 1500):
        values[row] = 2 - 1.6 * np.abs(values[row - 1]) + 0.1 * values[row]
    config = replace(
        base,
        data=replace(
            base.data, path=str(write_stamped(tmp_path / "days.csv", values, "D")),
            seq_len=16, pred_len=1,
        ),
        model=replace(
            base.model, anchor="ridge_retrieval" if reads else "ridge", anchor_weights=weights,
            anchor_calendar="day", anchor_random_features=128,
        ),
        gram=replace(base.gram, use_gram=reads, retrieval_key="anchored"),
    )  # fmt: skip

    of_none = replace(config, model=replace(config.model, anchor_calendar="none"))
    (closed, found), (_, wanted) = solved_anchor(config), solved_anchor(of_none)
    (fit,) = closed.extended if closed.verdict is None else closed.verdict.reading
    assert fit.extension == Extension(random_features=128)
    rows, phase = torch.randn(6, 16), torch.randn(3, 4)
    retrieved = torch.randn(6, 1) if reads else None
    torch.testing.assert_close(found(rows, retrieved, phase), wanted(rows, retrieved))
    assert wanted.weight[..., -128:].any()
    assert found.weight.shape[-1] > wanted.weight.shape[-1]


def test_a_source_that_has_nothing_to_follow_is_passed_over_quietly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = run_over_sources(tmp_path, held_out="quarter")
    config = replace(config, model=replace(config.model, anchor_calendar="day"))
    checked = preflight.check(config)
    decided, closed = solve(config, checked.data, None)
    assert closed.extended[2] is closed.by_source[2]  # days
    files = checked.backbone_files
    prompts = build_prompt_builder(config, files, checked.data.descriptions)
    model = build_forecaster(decided, files, torch.float32, prompts, num_sources=3)
    set_solutions(model, decided, checked.data, closed, None)
    assert "anchor of daily: the plain ridge" not in capsys.readouterr().out
    assert model.anchor is not None
    plain = closed.by_source[2].weight.float()
    torch.testing.assert_close(model.anchor.weight[2, :, : plain.shape[1]], plain)


def test_ridges_of_sources_come_back_too():
    joint, own = fit(1.0, 3), fit(2.0, 3)
    tensors, facts = pack(ClosedForm(ridge=joint, verdict=None, by_source=(own, joint)), 0.5)
    again, _ = unpack(tensors, json.loads(json.dumps(facts)))
    assert [float(one.weight[0, 0]) for one in again.by_source] == [2.0, 1.0]
    assert again.plain == again.by_source


def test_what_each_source_reads_more_comes_back_too():
    joint, own = fit(1.0, 3), fit(2.0, 3)
    more = replace(fit(4.0, 9), extension=Extension(calendar="day"))
    closed = ClosedForm(
        ridge=joint, verdict=None, by_source=(own, own, joint), extended=(more, own, joint)
    )
    again, _ = unpack(*(json.loads(json.dumps(part)) if isinstance(part, dict) and "fits" in part
                        else part for part in pack(closed, 0.5)))  # fmt: skip
    assert [float(one.weight[0, 0]) for one in again.extended] == [4.0, 2.0, 1.0]
    assert again.extended[0].extension == more.extension
    assert again.extended[1] is again.by_source[1]


def test_each_source_starts_at_its_own_ridge(tmp_path: Path):
    config = run_over_sources(tmp_path)
    checked = preflight.check(config)
    decided, closed = solve(config, checked.data, None)
    model = build_forecaster(
        decided, checked.backbone_files, torch.float32,
        build_prompt_builder(config, checked.backbone_files, checked.data.descriptions),
        num_sources=3,
    )  # fmt: skip
    mse = set_solutions(model, decided, checked.data, closed, None)
    assert model.anchor is not None
    for source in range(2):
        alone = fit_ridge(checked.data.only(source))
        torch.testing.assert_close(model.anchor.weight[source], alone.weight.float())
        assert closed.by_source[source].validation_mse == pytest.approx(alone.validation_mse)
    torch.testing.assert_close(model.anchor.weight[2], closed.ridge.weight.float())
    expected = sum(one.validation_mse for one in closed.by_source[:2]) / 2
    assert mse == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize(
    ("by_source", "use_gram", "off"),
    [
        ({"hours": (1.0, 0.5), "quarters": (1.0, 2.0)}, True, ("quarters",)),
        ({"hours": (1.0, 0.5), "quarters": (1.0, 0.9)}, True, ()),
        ({"hours": (1.0, 1.5), "quarters": (1.0, 2.0)}, False, ()),
    ],
)
def test_auto_is_decided_for_each_source(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_source: dict[str, tuple[float, float]],
    use_gram: bool,
    off: tuple[str, ...],
):
    base = tiny_corpus_run(tmp_path)
    data = preflight.check(base).data
    # What the ridges reach together does not decide.
    verdict = RetrievalVerdict(without=fit(1.0, 3), with_retrieval=fit(2.0, 5), by_source=by_source)
    monkeypatch.setattr(closed_form, "judge_retrieval", lambda *given, **keys: verdict)
    auto = replace(base, gram=replace(base.gram, use_gram="auto"))
    decided, closed = closed_form.solve(auto, data, None)
    assert decided.gram.use_gram is use_gram
    assert closed.off == off
    # Who asks for the memory gets it everywhere.
    _, asked = closed_form.solve(base, data, None)
    assert asked.off == ()

    tensors, facts = pack(closed, 0.5)
    facts = json.loads(json.dumps(facts))
    again, _ = unpack(tensors, facts)
    assert again.off == closed_form.sources_off(facts) == off
    assert again.verdict is not None
    assert again.verdict.by_source == by_source


def test_of_one_source_nothing_more_is_written_than_before():
    verdict = RetrievalVerdict(without=fit(2.0, 3), with_retrieval=fit(3.0, 5))
    _, facts = pack(ClosedForm(ridge=fit(1.0, 3), verdict=verdict), 0.125)
    assert set(facts) == {"fits", "ridge_val_mse"}
    assert closed_form.sources_off({}) == ()


def test_auto_says_so_where_a_source_has_no_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = tiny_corpus_run(tmp_path)
    data = preflight.check(base).data
    auto = replace(base, gram=replace(base.gram, use_gram="auto"))
    sources = (data.sources[0], with_odd_clock(data.sources[1]))
    decided, closed = closed_form.solve(auto, replace(data, sources=sources), None)
    words = "memory: the series of {} overlap in time but share no regular clock"
    assert words.format("quarters") in capsys.readouterr().out
    assert decided.gram.use_gram is True, "the other one has a memory"
    assert closed.off == ("quarters",)

    sources = (with_odd_clock(data.sources[0]), sources[1])
    decided, closed = closed_form.solve(auto, replace(data, sources=sources), None)
    assert decided.gram.use_gram is False
    assert closed.verdict is None
    assert words.format("hours, quarters") in capsys.readouterr().out


def with_odd_clock(source: Source) -> Source:
    first, *others = source.series_set.series
    shifted = replace(first, dates=first.dates + np.timedelta64(7, "m"))
    return replace(source, series_set=replace(source.series_set, series=(shifted, *others)))
