"""model/inspection.py: words known beforehand, and sums against a loop."""

import math

import pytest
import torch
from torch import Tensor

from model import inspection
from model.inspection import (
    AttentionSums,
    attention_in_parts,
    chance_cosines,
    find_words,
    observing,
)
from model.reprogramming import ReprogrammingLayer, TextPrototypes, word_basis


def mapping(weight: Tensor, bias: Tensor | None = None) -> TextPrototypes:
    layer = TextPrototypes(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.mapping.weight.copy_(weight)
        layer.mapping.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


def random_words(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def test_a_prototype_that_is_a_word_is_nearest_to_it():
    words = random_words(40, 16) + 5  # a large common part
    weight = torch.zeros(4, 40)
    weight[0, 7] = weight[1, 30] = 1
    weight[2, 7] = weight[3, 30] = -1  # opposites, so that the prototypes share nothing
    found = find_words(mapping(weight), words, 4)
    assert found.nearest[:2, 0].tolist() == [7, 30]
    torch.testing.assert_close(found.cosines[:2, 0], torch.ones(2))
    assert 7 not in found.nearest[2]
    assert found.shared_part == pytest.approx(0, abs=1e-9)
    assert found.heaviest[:, 0].tolist() == [7, 30, 7, 30]
    assert found.weights[:, 0].tolist() == [1, 1, -1, -1]


def test_what_all_words_share_decides_nothing():
    # The words differ in the first two coordinates alone; the third, common one is far larger.
    words = torch.tensor([[1.0, 0, 9], [0, 1, 9], [-1, 0, 9], [0, -1, 9]])
    weight = torch.tensor([[1.0, 0.2, 0, 0], [-2, -0.4, 0.5, 0.5], [1, 0.2, -0.5, -0.5]])
    found = find_words(mapping(weight), words, 4)
    assert found.nearest[0].tolist() == [0, 1, 3, 2]
    expected = torch.tensor([1, 0.2, -0.2, -1]) / math.hypot(1, 0.2)
    torch.testing.assert_close(found.cosines[0], expected)


def test_what_all_prototypes_share_is_told_once():
    words = random_words(40, 16)
    weight = torch.zeros(4, 40)
    weight[0, 7] = weight[1, 30] = 1
    weight[2, 7] = weight[3, 30] = -1
    alone = find_words(mapping(weight), words, 4)
    together = weight.clone()
    together[:, 11] += 3
    found = find_words(mapping(together), words, 4)
    assert torch.equal(found.nearest, alone.nearest)
    torch.testing.assert_close(found.cosines, alone.cosines)
    assert found.shared[0] == 11
    assert float(found.shared_cosines[0]) == pytest.approx(1)
    own, common = (words - words.mean(dim=0))[[7, 30]], 3 * (words - words.mean(dim=0))[11]
    expected = common.square().sum() / (common.square().sum() + own.square().sum() / 2)
    assert found.shared_part == pytest.approx(float(expected), rel=1e-4)


def test_what_all_prototypes_share_moves_no_attention():
    layer, patches, prototypes = layer_with(), torch.randn(4, 9, 6), torch.randn(8, 10)
    moved = prototypes + 3 * torch.randn(10)
    torch.testing.assert_close(
        layer.attention(patches, moved), layer.attention(patches, prototypes)
    )


def test_prototypes_that_are_nothing_have_no_word():
    found = find_words(mapping(torch.zeros(3, 11)), random_words(11, 4), 2)
    assert found.shared_part == 0
    assert torch.equal(found.cosines, torch.zeros(3, 2))


@pytest.mark.parametrize("at_once", [3, 8, 100])
def test_nearest_words_match_a_loop_however_they_are_cut(
    at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inspection, "_WORDS_AT_ONCE", at_once)
    words, weight = random_words(24, 6) + 1, random_words(5, 24)
    bias = torch.linspace(-1, 1, 5)
    found = find_words(mapping(weight, bias), words, 4)
    centred = words - words.mean(dim=0)
    prototypes = [sum(weight[row, v] * centred[v] for v in range(24)) + bias[row]
                  for row in range(5)]  # fmt: skip
    for row in range(5):
        prototype = prototypes[row] - sum(prototypes) / 5
        cosines = [float(torch.cosine_similarity(prototype, word, dim=0)) for word in centred]
        best = sorted(range(24), key=lambda v: -cosines[v])[:4]
        assert found.nearest[row].tolist() == best
        torch.testing.assert_close(found.cosines[row], torch.tensor([cosines[v] for v in best]))
        heaviest = sorted(range(24), key=lambda v: -abs(float(weight[row, v])))[:4]
        assert found.heaviest[row].tolist() == heaviest
        assert torch.equal(found.weights[row], weight[row, heaviest])


def test_words_of_half_precision_are_found_too():
    words = random_words(30, 16)
    weight = torch.zeros(2, 30)
    weight[0, 3] = 1
    found = find_words(mapping(weight).bfloat16(), words.bfloat16(), 2)
    assert found.nearest[0, 0] == 3
    assert found.cosines.dtype == found.weights.dtype == torch.float32


@pytest.mark.parametrize("count", [0, 12])
def test_refuses_more_words_than_there_are(count: int):
    with pytest.raises(ValueError, match=rf"count must be in \[1, 11\], got {count}"):
        find_words(mapping(torch.zeros(2, 11)), random_words(11, 4), count)


def test_an_untrained_map_reaches_what_chance_does_and_a_word_more():
    words = random_words(2000, 32)
    torch.manual_seed(0)
    untrained = find_words(TextPrototypes(2000, 50), words, 1).cosines[:, 0]
    chance = chance_cosines(words, 50)
    assert torch.equal(chance, chance_cosines(words, 50))
    assert float(untrained.mean()) == pytest.approx(float(chance.mean()), abs=0.03)
    assert 0.4 < float(chance.mean()) < 0.8


def layer_with(n_heads: int = 2) -> ReprogrammingLayer:
    torch.manual_seed(0)
    return ReprogrammingLayer(d_model=6, n_heads=n_heads, d_ff=5, d_llm=10, dropout=0.0).eval()


def test_records_what_the_layer_is_given_while_it_is_observed():
    layer, patches, prototypes = layer_with(), torch.randn(4, 9, 6), torch.randn(8, 10)
    with observing(layer) as seen:
        layer(patches, prototypes)
    layer(patches + 1, prototypes)
    ((patches_seen, prototypes_seen),) = seen
    assert torch.equal(patches_seen, patches)
    assert torch.equal(prototypes_seen, prototypes)


@pytest.mark.parametrize("at_once", [1, 2 * 9 * 8 * 3, 1 << 20])
def test_parts_of_the_attention_are_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "_WEIGHTS_AT_ONCE", at_once)
    layer, patches, prototypes = layer_with(), torch.randn(4, 9, 6), torch.randn(8, 10)
    parts = list(attention_in_parts(layer, patches, prototypes))
    assert len(parts) == {1: 4, 432: 2}.get(at_once, 1)
    torch.testing.assert_close(torch.cat(parts), layer.attention(patches, prototypes))


def test_sums_match_a_loop():
    attention = torch.softmax(3 * torch.randn(5, 2, 7, 6), dim=-1)
    sums = AttentionSums(2, 6)
    for part in (attention[:3], attention[3:]):
        sums.add(part)
    assert sums.num_patches == 35
    patches = [attention[r, :, p].double() for r in range(5) for p in range(7)]
    means = [patch.mean(dim=0) for patch in patches]
    torch.testing.assert_close(sums.usage_per_head, sum(patches) / 35)
    torch.testing.assert_close(sums.usage, sum(means) / 35)
    firsts = [int(mean.argmax()) for mean in means]
    assert sums.share_first.tolist() == [firsts.count(s) / 35 for s in range(6)]
    entropies = [-sum(float(a) * math.log(float(a)) for a in mean) for mean in means]
    assert sums.prototypes_per_patch == pytest.approx(math.exp(sum(entropies) / 35), rel=1e-5)
    divergences = [float((m * (m / sums.usage).log2()).sum()) for m in means]
    assert sums.bits_per_patch == pytest.approx(sum(divergences) / 35, abs=1e-5)


def test_the_extremes_of_the_key_figures():
    alike, apart = AttentionSums(1, 4), AttentionSums(1, 4)
    alike.add(torch.full((1, 1, 8, 4), 0.25))
    apart.add(torch.eye(4)[None, None])
    assert alike.prototypes_per_patch == pytest.approx(4)
    assert alike.bits_per_patch == pytest.approx(0, abs=1e-6)
    assert apart.prototypes_per_patch == pytest.approx(1)
    assert apart.prototypes_used == pytest.approx(4)
    assert apart.bits_per_patch == pytest.approx(2)


def test_the_factored_map_tells_the_words_of_the_map_that_it_equals():
    words = random_words(40, 6)
    basis = word_basis(words)
    factored = TextPrototypes(40, 5, width=6)
    by_word = mapping(factored.word_weights(basis, words).detach(), factored.mapping.bias.detach())
    torch.testing.assert_close(by_word(words), factored(basis), atol=1e-5, rtol=1e-4)
    one, other = find_words(by_word, words, 3), find_words(factored, words, 3)
    assert torch.equal(one.nearest, other.nearest)
    assert torch.equal(one.heaviest, other.heaviest)
    torch.testing.assert_close(one.cosines, other.cosines, atol=1e-5, rtol=1e-4)
