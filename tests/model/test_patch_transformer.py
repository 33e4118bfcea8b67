"""model/patch_transformer.py: a forecaster of rows, each by itself, on its own level and scale."""

import pytest
import torch

from model.patch_transformer import D_MODEL, PatchTransformer


@pytest.fixture(scope="module")
def module() -> PatchTransformer:
    torch.manual_seed(0)
    return PatchTransformer(48, 12).eval()


def test_rows_are_forecast_each_by_itself(module: PatchTransformer):
    rows = torch.randn(5, 48)
    together = module(rows)
    assert together.shape == (5, 12)
    torch.testing.assert_close(module(rows[2:3])[0], together[2], rtol=1e-4, atol=1e-5)


def test_level_and_scale_of_a_row_are_those_of_its_forecast(module: PatchTransformer):
    rows = torch.randn(3, 48)
    moved = module(5 * rows + 100)
    torch.testing.assert_close(moved, 5 * module(rows) + 100, rtol=1e-3, atol=1e-2)


def test_the_last_map_reads_each_patch_by_itself(module: PatchTransformer):
    num_patches = 5  # of 16 steps, 8 apart
    assert module.network.head.projection.in_features == num_patches * D_MODEL


def test_it_is_small_and_all_of_it_is_trained(module: PatchTransformer):
    fixed = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert fixed == ["network.model.encoder.positional_encoder.position_enc"]
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
    assert sum(sizes) == 17_420


def test_a_window_of_less_than_two_patches_is_refused():
    with pytest.raises(ValueError, match=r"data\.seq_len=20: the baseline patchtst cuts patches"):
        PatchTransformer(20, 4)
