"""model/pattern_encoder.py: the two keys, what moves them, and their fingerprints."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import GramConfig
from model.pattern_encoder import (
    AnchoredEncoder,
    DualEncoder,
    build_encoder,
    fingerprint,
    window_statistics,
)


def make_dual(seq_len: int = 40, d_repr: int = 8, shape_weight: float = 0.7) -> DualEncoder:
    torch.manual_seed(0)
    encoder = DualEncoder(seq_len, d_repr)
    torch.nn.init.constant_(encoder.dual_key.shape_weight, shape_weight)
    return encoder


@pytest.mark.parametrize("d_repr", [64, 128, 256])
@pytest.mark.parametrize("key", ["dual", "anchored"])
def test_every_width_gives_keys_of_the_width_it_announces(d_repr: int, key: str):
    encoder = build_encoder(GramConfig(d_repr=d_repr, retrieval_key=key), 96)
    with torch.no_grad():
        code = encoder(torch.randn(3, 96))
    assert encoder.key_width == (2 * d_repr if key == "dual" else d_repr)
    assert code.key.shape == (3, encoder.key_width)
    assert code.key.dtype == torch.float32


def test_squared_distances_of_keys_are_the_weighted_sum_of_both_distances():
    encoder = make_dual()
    one, other = encoder(torch.randn(5, 40)), encoder(torch.randn(5, 40))
    weight = torch.tensor(0.7).sigmoid()
    for row in range(5):
        by_shape = (one.shape[row] - other.shape[row]).square().sum()
        by_value = (one.value[row] - other.value[row]).square().sum()
        expected = weight * by_shape + (1 - weight) * by_value
        got = (one.key[row] - other.key[row]).square().sum()
        torch.testing.assert_close(got, expected)


def test_the_shape_code_ignores_level_and_scale_and_the_value_code_does_not():
    encoder, windows = make_dual(), torch.randn(4, 40)
    moved = 3 * windows + 7
    before, after = encoder(windows), encoder(moved)
    torch.testing.assert_close(before.shape, after.shape, rtol=1e-3, atol=1e-4)
    assert (before.value - after.value).abs().sum(dim=1).min() > 0.05


def test_the_value_code_ignores_the_order_inside_and_the_shape_code_does_not():
    encoder, windows = make_dual(), torch.randn(4, 40)
    shuffled = torch.cat([windows[:, :1], windows[:, 1:-1].flip(1), windows[:, -1:]], dim=1)
    before, after = encoder(windows), encoder(shuffled)
    torch.testing.assert_close(before.value, after.value, rtol=1e-4, atol=1e-5)
    assert (before.shape - after.shape).abs().sum(dim=1).min() > 0.05


@pytest.mark.parametrize("seq_len", [5, 16, 37, 40])
def test_every_time_step_reaches_the_shape_code_whether_patches_divide_or_not(seq_len: int):
    windows = torch.randn(2, seq_len, requires_grad=True)
    encoder = make_dual(seq_len)
    (encoder(windows).shape * torch.arange(8)).sum().backward()
    assert windows.grad is not None
    assert (windows.grad != 0).all()


@pytest.mark.parametrize("encoder", [make_dual(), AnchoredEncoder(40, 8)], ids=["dual", "anchored"])
def test_neighbours_in_blocks_get_the_keys_of_single_rows(encoder: DualEncoder | AnchoredEncoder):
    windows = torch.randn(3, 5, 40)
    whole = encoder(windows)
    single = encoder(windows[1, 2][None])
    torch.testing.assert_close(whole.key[1, 2], single.key[0])
    assert whole.value.shape[:2] == (3, 5)


@pytest.mark.parametrize("encoder", [make_dual(), AnchoredEncoder(40, 8)], ids=["dual", "anchored"])
def test_index_and_query_agree_in_training_and_evaluation(encoder: DualEncoder | AnchoredEncoder):
    windows = torch.randn(3, 40)
    trained = encoder.train()(windows).key
    with torch.no_grad():
        assert torch.equal(trained, encoder.eval()(windows).key)


@settings(deadline=None, max_examples=20)
@given(level=st.floats(-1e4, 1e4))
def test_windows_without_variance_have_finite_keys_and_gradients(level: float):
    encoder = make_dual()
    code = encoder(torch.full((2, 40), level))
    code.key.sum().backward()
    assert code.key.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert AnchoredEncoder(40, 8)(torch.full((2, 40), level)).key.isfinite().all()


def test_every_parameter_gets_a_gradient():
    encoder = make_dual()
    one, other = encoder(torch.randn(6, 40)), encoder(torch.randn(6, 40))
    (one.key - other.key).square().sum(dim=1).square().sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_extreme_shape_weights_stay_finite():
    encoder = make_dual(shape_weight=-200.0)
    code = encoder(torch.randn(2, 40))
    code.key.sum().backward()
    assert code.key.isfinite().all()
    assert encoder.dual_key.shape_weight.grad is not None
    assert encoder.dual_key.shape_weight.grad.isfinite()


def test_the_anchored_key_equals_the_obvious_loop():
    windows = torch.randn(4, 40)
    encoder = AnchoredEncoder(40, 8)
    assert not list(encoder.parameters())
    for row, key in zip(windows, encoder(windows).key, strict=True):
        scale = (row.var(unbiased=False) + 1e-5).sqrt()
        anchored = (row - row[-1]) / scale
        cells = torch.stack([anchored[i : i + 5].mean() for i in range(0, 40, 5)])
        torch.testing.assert_close(key, cells / 8**0.5)


def test_statistics_are_those_of_the_window():
    rows = torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0]])
    got = window_statistics(rows, torch.tensor([[2.0]]))
    expected = torch.tensor([[3.8, torch.tensor(2.0).log().item(), 1.0, 3.0, 9.0, 9.0, 5.0]])
    torch.testing.assert_close(got, expected)


def test_the_fingerprint_names_the_state():
    encoder = make_dual()
    same = copy.deepcopy(encoder)
    assert fingerprint(encoder) == fingerprint(same)
    with torch.no_grad():
        same.dual_key.shape_weight += 1e-6
    assert fingerprint(encoder) != fingerprint(same)
    assert fingerprint(AnchoredEncoder(40, 8)) == fingerprint(AnchoredEncoder(40, 8))
    assert fingerprint(AnchoredEncoder(40, 8)) != fingerprint(AnchoredEncoder(40, 4))


def test_a_bfloat16_encoder_gives_float32_keys():
    code = make_dual().bfloat16()(torch.randn(3, 40))
    assert code.key.dtype == torch.float32
    assert code.key.isfinite().all()


@pytest.mark.parametrize("encoder", [make_dual(), AnchoredEncoder(40, 8)], ids=["dual", "anchored"])
def test_refuses_windows_of_another_length(encoder: DualEncoder | AnchoredEncoder):
    with pytest.raises(ValueError, match=r"seq_len=40, got shape \(2, 39\)"):
        encoder(torch.zeros(2, 39))
