"""model/attention.py: in parts as in one, with gradients."""

import pytest
import torch
import torch.nn.functional as F

from model import attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("most", [2, 5, 65_535])
def test_parts_of_the_rows_give_what_all_of_them_give(
    monkeypatch: pytest.MonkeyPatch, masked: bool, most: int
):
    monkeypatch.setattr(attention, "MAX_ROWS", most)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(5, 2, 3, 4, generator=generator, requires_grad=True) for _ in range(3)]
    mask = torch.rand(5, 1, 1, 3, generator=generator) < 0.7
    mask[..., 0] = True
    calls: list[int] = []
    real = F.scaled_dot_product_attention

    def counted(query: torch.Tensor, *rest: torch.Tensor, **keys: torch.Tensor) -> torch.Tensor:
        calls.append(len(query))
        return real(query, *rest, **keys)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    found = attention.attend(*parts, mask if masked else None)
    assert max(calls) <= most
    assert sum(calls) == 5
    wanted = real(*parts, attn_mask=mask if masked else None)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(found.shape, generator=generator)
    mine = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((wanted * weights).sum(), parts)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
