"""model/config.py: defaults, the number of patches, the spec preset, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import BackboneConfig, GramConfig, ModelConfig, TaprConfig, num_patches

MODEL_REFUSALS = [
    ({"patch_len": 0}, r"model\.patch_len must be at least 1, got 0"),
    ({"d_model": 0}, r"model\.d_model must be at least 1, got 0"),
    ({"d_ff": -1}, r"model\.d_ff must be at least 1, got -1"),
    ({"n_heads": 0}, r"model\.n_heads must be at least 1, got 0"),
    ({"num_prototypes": 0}, r"model\.num_prototypes must be at least 1, got 0"),
    ({"stride": 0}, r"model\.stride must be in \[1, patch_len=16\], got 0"),
    ({"stride": 17}, r"got 17: a larger stride would skip time steps"),
    ({"dropout": 1.0}, r"model\.dropout must be in \[0, 1\), got 1\.0"),
    ({"dropout": -0.1}, r"model\.dropout must be in \[0, 1\), got -0\.1"),
    ({"num_prompt_lags": 0}, r"model\.num_prompt_lags .* got 0: use model\.prompt=none"),
    ({"num_prompt_lags": 21}, r"model\.num_prompt_lags must be in \[1, 20\], got 21"),
    ({"max_prompt_tokens": 0}, r"model\.max_prompt_tokens must be at least 1, got 0"),
]
BACKBONE_REFUSALS = [
    ({"name": ""}, r"backbone\.name must not be empty"),
    ({"llm_layers": 0}, r"backbone\.llm_layers must be at least 1, got 0"),
]
TAPR_REFUSALS = [
    ({"n_scales": 1}, r"tapr\.n_scales must be in \[2, 5\], got 1"),
    ({"n_scales": 6}, r"tapr\.n_scales must be in \[2, 5\], got 6"),
    ({"label_smoothing": 1.0}, r"tapr\.label_smoothing must be in \[0, 1\), got 1\.0"),
    ({"lambda_hcl": -0.1}, r"tapr\.lambda_hcl must be finite and not negative, got -0\.1"),
    ({"lambda_trend": math.nan}, r"tapr\.lambda_trend must be finite and not negative, got nan"),
    ({"gate_init": math.inf}, r"tapr\.gate_init must be a finite number, got inf"),
    ({"trend_thresholds": [0.0, 1.0]}, r"four finite numbers, or quantile or learnable, got"),
    ({"trend_thresholds": [0.0, 0.0, 1.0, 2.0]}, r"tapr\.trend_thresholds must ascend, got"),
    ({"fusion_factors": [1.0]}, r"tapr\.fusion_factors must be four finite numbers, or learned"),
    ({"fusion_factors": [0.0] * 4}, r"would go unused: .* tapr\.lambda_reg=0\.1 builds"),
]
GRAM_REFUSALS = [
    ({"use_gram": "maybe"}, r"gram\.use_gram must be true, false or auto, got 'maybe'"),
    ({"use_gram": 1}, r"gram\.use_gram must be true, false or auto, got 1"),
    ({"top_k": 0}, r"gram\.top_k must be at least 1, got 0"),
    ({"d_repr": 0}, r"gram\.d_repr must be a positive multiple of 4, got 0"),
    ({"d_repr": 130}, r"gram\.d_repr must be a positive multiple of 4, got 130"),
    ({"temperature": 0.0}, r"gram\.temperature must be positive, got 0\.0"),
    ({"lambda_retrieval": -1.0}, r"gram\.lambda_retrieval must be finite and not negative"),
    ({"gate_init": math.nan}, r"gram\.gate_init must be a finite number, got nan"),
    ({"refresh_every": 0}, r"gram\.refresh_every must be at least 1, or never, got 0"),
    ({"refresh_every": "often"}, r"refresh_every must be at least 1, or never, got often"),
    ({"refresh_lag": -1}, r"gram\.refresh_lag must not be negative, got -1: 0 waits while"),
    (
        {"refresh_every": 4, "refresh_lag": 4},
        r"gram\.refresh_lag=4 must be less than gram\.refresh_every=4: one refresh is over",
    ),
]


def test_defaults_of_the_model_are_those_of_the_specification():
    model, backbone = ModelConfig(), BackboneConfig()
    assert (model.patch_len, model.stride, model.patch_embedding) == (16, 8, "conv")
    assert (model.d_model, model.d_ff, model.n_heads) == (64, 128, 8)
    assert (model.num_prototypes, model.dropout, model.norm) == (1000, 0.15, "mean")
    assert (model.prompt, model.num_prompt_lags, model.lags) == ("full", 5, "peaks")
    assert (model.max_prompt_tokens, backbone.llm_layers) == (128, 12)


def test_the_reference_window_has_63_patches():
    assert num_patches(512, 16, 8) == 63


@given(patch_len=st.integers(1, 32), stride=st.integers(1, 32), more=st.integers(0, 200))
def test_patches_cover_every_step_and_none_is_superfluous(patch_len: int, stride: int, more: int):
    stride, seq_len = min(stride, patch_len), patch_len + more
    count = num_patches(seq_len, patch_len, stride)
    covered = patch_len + (count - 1) * stride
    assert seq_len <= covered < seq_len + stride


def test_a_window_shorter_than_a_patch_is_refused():
    with pytest.raises(ValueError, match=r"data\.seq_len=15 is shorter than one patch .*=16"):
        num_patches(15, 16, 8)


@pytest.mark.parametrize(("settings", "message"), MODEL_REFUSALS)
def test_the_model_refuses(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(("settings", "message"), BACKBONE_REFUSALS)
def test_the_backbone_refuses(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**settings)


def test_defaults_of_the_enhancements_are_those_of_the_specification():
    tapr, gram = TaprConfig(), GramConfig()
    assert (tapr.n_scales, tapr.label_smoothing, tapr.trend_thresholds) == (3, 0.1, "quantile")
    lambdas = (tapr.lambda_dir, tapr.lambda_mag, tapr.lambda_hcl, tapr.lambda_reg)
    assert (*lambdas, tapr.lambda_trend) == (0.3, 0.3, 0.1, 0.1, 0.5)
    assert (tapr.trend_fusion, tapr.fusion_form, tapr.gate_init) == ("always", "additive", 0)
    assert (gram.top_k, gram.d_repr, gram.temperature) == (5, 128, 0.1)
    assert (gram.lambda_retrieval, gram.gate_init, gram.refresh_every) == (0.3, 0, None)
    assert (gram.retrieval_key, gram.leak_alarm, gram.refresh_lag) == ("dual", "stop", None)


def test_the_spec_preset_can_be_said():
    tapr = TaprConfig(
        gate_init=1.0,
        trend_thresholds=[-0.02, -0.005, 0.005, 0.02],
        trend_fusion="train_only",
        fusion_form="multiplicative",
        fusion_factors=[-0.02, -0.005, 0.005, 0.02],
        lambda_reg=0.0,
    )
    assert not tapr.builds_change
    assert GramConfig(use_gram=True, gate_init=1.0).use_gram is True


@pytest.mark.parametrize(("every", "lag"), [(4, 0), (4, 3), (1, 0), (None, 100), (4, None)])
def test_a_refresh_may_last_until_just_before_the_next(every: int | None, lag: int | None):
    gram = GramConfig(refresh_every=every, refresh_lag=lag)
    assert (gram.refresh_every, gram.refresh_lag) == (every, lag)


@pytest.mark.parametrize(("settings", "message"), TAPR_REFUSALS)
def test_tapr_refuses(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        TaprConfig(**settings)


@pytest.mark.parametrize(("settings", "message"), GRAM_REFUSALS)
def test_gram_refuses(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        GramConfig(**settings)
