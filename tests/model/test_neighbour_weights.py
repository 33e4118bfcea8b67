"""model/neighbour_weights.py: the softmax against a loop, and the gradients against differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import RetrievedWindows
from model.neighbour_weights import key_distances, softmax_weights, weigh_neighbours
from model.pattern_encoder import AnchoredEncoder, DualEncoder


def retrieve(rows: int, top_k: int, seq_len: int = 12) -> RetrievedWindows:
    valid = torch.rand(rows, top_k) < 0.7
    return RetrievedWindows(
        windows=torch.randn(rows, top_k, seq_len) * valid[..., None],
        futures=torch.randn(rows, top_k, 4) * valid[..., None],
        ids=torch.where(valid, torch.randint(99, (rows, top_k)), -1),
        valid=valid,
    )


@settings(deadline=None)
@given(
    rows=st.integers(0, 4), top_k=st.integers(1, 10), temperature=st.sampled_from([1e-3, 0.1, 5.0])
)
def test_weights_equal_a_softmax_over_the_neighbours_there_are(
    rows: int, top_k: int, temperature: float
):
    distances, valid = torch.rand(rows, top_k) * 4, torch.rand(rows, top_k) < 0.6
    weights = softmax_weights(distances, valid, temperature)
    for row in range(rows):
        assert not weights[row, ~valid[row]].any()
        there = (-distances[row, valid[row]] / temperature).softmax(0)
        torch.testing.assert_close(weights[row, valid[row]], there)


def test_what_empty_slots_hold_does_not_matter_and_a_row_without_neighbours_is_zero():
    distances = torch.tensor([[1.0, torch.inf], [torch.inf, torch.inf]], requires_grad=True)
    valid = torch.tensor([[True, False], [False, False]])
    weights = softmax_weights(distances, valid, 0.1)
    weights.square().sum().backward()
    assert weights.tolist() == [[1, 0], [0, 0]]
    assert distances.grad is not None
    assert distances.grad.isfinite().all()


@pytest.mark.parametrize("encoder", [DualEncoder(12, 8), AnchoredEncoder(12, 4)])
@pytest.mark.parametrize("top_k", range(1, 11))
def test_distances_are_recomputed_from_the_windows(
    encoder: DualEncoder | AnchoredEncoder, top_k: int
):
    windows, retrieved = torch.randn(3, 12), retrieve(3, top_k)
    distances, weights = weigh_neighbours(encoder, windows, retrieved, 0.1)
    for row in range(3):
        for slot in range(top_k):
            query = encoder(windows[row][None]).key
            neighbour = encoder(retrieved.windows[row, slot][None]).key
            torch.testing.assert_close(distances[row, slot], (query - neighbour).square().sum())
    torch.testing.assert_close(weights, softmax_weights(distances, retrieved.valid, 0.1))


@pytest.mark.parametrize("shape_weight", [-3.0, 0.0, 2.0])
def test_distances_weigh_shape_and_value_with_the_current_weight(shape_weight: float):
    encoder = DualEncoder(12, 4)
    query, neighbours = encoder(torch.randn(2, 12)), encoder(torch.randn(2, 3, 12))
    torch.nn.init.constant_(encoder.dual_key.shape_weight, shape_weight)
    query = query._replace(key=encoder.join(query.shape, query.value))
    weight = torch.tensor(shape_weight).sigmoid()
    by_shape = (query.shape[:, None] - neighbours.shape).square().sum(-1)
    by_value = (query.value[:, None] - neighbours.value).square().sum(-1)
    expected = weight * by_shape + (1 - weight) * by_value
    torch.testing.assert_close(key_distances(encoder, query, neighbours), expected)


def test_weights_pass_gradcheck_in_the_query_encoder_and_the_shape_weight():
    torch.manual_seed(0)
    encoder = DualEncoder(12, 4, patch_len=6).double()
    with torch.no_grad():
        frozen = encoder(torch.randn(2, 3, 12))  # the neighbours' side is a constant
    windows, valid = torch.randn(2, 12), torch.tensor([[True] * 3, [True, False, True]])
    names = [name for name, _ in encoder.named_parameters()]

    def weights_of(*parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Weights(encoder), _prefixed(state), (windows,))

    class _Weights(torch.nn.Module):
        def __init__(self, inner: DualEncoder) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, rows: Tensor) -> Tensor:
            distances = key_distances(self.inner, self.inner(rows), frozen)
            return softmax_weights(distances, valid, 0.5)

    def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"inner.{name}": tensor for name, tensor in state.items()}

    parameters = [p.detach().clone().requires_grad_() for p in encoder.parameters()]
    assert torch.autograd.gradcheck(weights_of, parameters, atol=1e-5, fast_mode=True)
    grads = torch.autograd.grad(weights_of(*parameters)[0, 0], parameters)
    assert not [name for name, grad in zip(names, grads, strict=True) if not grad.any()]


def test_the_weights_train_the_encoder_and_not_the_neighbours_side():
    torch.manual_seed(0)
    encoder, retrieved = DualEncoder(12, 8), retrieve(6, 5)
    retrieved.windows.requires_grad_()
    _, weights = weigh_neighbours(encoder, torch.randn(6, 12), retrieved, 0.1)
    (weights * torch.arange(5)).sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert retrieved.windows.grad is None


def test_refuses_flags_of_another_shape():
    with pytest.raises(ValueError, match=r"got shapes \(2, 3\) and \(2, 4\)"):
        softmax_weights(torch.zeros(2, 3), torch.ones(2, 4) > 0, 0.1)
