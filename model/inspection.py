"""What can be read off the reprogramming: words near the prototypes, and what patches attend to.

Shape legend (this file):
    R  rows, one per (window, variate)     V  vocabulary of the language model
    P  patches per row                     S  num_prototypes
    G  n_heads                             E  hidden width of the language model
    K  words listed per prototype
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.reprogramming import ReprogrammingLayer, TextPrototypes, word_basis

_WORDS_AT_ONCE = 8192
_WEIGHTS_AT_ONCE = 1 << 26  # float32 attention weights held at a time, 256 MiB


@dataclass(frozen=True, kw_only=True)
class PrototypeWords:
    """The words that say most about each prototype, as token ids, the first the closest."""

    nearest: Tensor
    """Words with the largest cosine with what tells the prototype from the others. (S, K)."""

    cosines: Tensor
    """Their cosines. Shape (S, K), float32."""

    shared: Tensor
    """Words with the largest cosine with what all prototypes share. Shape (K,), int64."""

    shared_cosines: Tensor
    """Their cosines. Shape (K,), float32."""

    shared_part: float
    """Share of the prototypes' mean squared length that is common to all of them."""

    heaviest: Tensor
    """Words with the largest weights of the map, whatever their sign. Shape (S, K), int64."""

    weights: Tensor
    """Their weights, with sign. Shape (S, K), float32."""


@torch.no_grad()
def find_words(layer: TextPrototypes, word_embeddings: Tensor, count: int) -> PrototypeWords:
    """Find the words nearest to each prototype, and those with most weight in it.

    Embeddings of a language model share a large common part, so plain cosines are high between any
    two words. The mean word is taken from every word, and from a prototype as often as its weights
    hold it: what remains of the prototype is the same map of the centred words. Of that the mean
    of all prototypes is taken too: training moves them together, and what they share adds the
    same to every score of a query, which its softmax does not see.

    Args:
        layer: The map from words to prototypes.
        word_embeddings: The backbone's input embeddings. Shape (V, E), floating point.
        count: Words per prototype, K.

    Returns:
        ``count`` words of either kind for each prototype.

    Raises:
        ValueError: ``count`` is not in [1, V], or the embeddings are not the layer's.
    """
    if not 1 <= count <= len(word_embeddings):
        raise ValueError(f"count must be in [1, {len(word_embeddings)}], got {count}.")
    words = word_basis(word_embeddings) if layer.is_factored else word_embeddings
    weights_SV = layer.word_weights(words, word_embeddings)
    mean_E = _mean_word(word_embeddings)
    centred_SE = layer(words).float() - weights_SV.sum(dim=1, keepdim=True) * mean_E
    shared_1E = centred_SE.mean(dim=0, keepdim=True)
    cosines_SK, nearest_SK = _nearest(centred_SE - shared_1E, word_embeddings, mean_E, count)
    shared_cosines_1K, shared_1K = _nearest(shared_1E, word_embeddings, mean_E, count)
    heaviest_SK = weights_SV.abs().topk(count, dim=1).indices
    length = float(centred_SE.square().sum(dim=1).mean())
    return PrototypeWords(
        nearest=nearest_SK,
        cosines=cosines_SK,
        shared=shared_1K[0],
        shared_cosines=shared_cosines_1K[0],
        shared_part=float(shared_1E.square().sum()) / length if length else 0.0,
        heaviest=heaviest_SK,
        weights=weights_SV.gather(1, heaviest_SK),
    )


@torch.no_grad()
def chance_cosines(word_embeddings: Tensor, num_prototypes: int, seed: int = 0) -> Tensor:
    """Cosine of the nearest word where a prototype is a random mixture of all words.

    An untrained map makes such mixtures. A prototype means something by its nearest word only as
    far as its cosine exceeds these.

    Args:
        word_embeddings: The backbone's input embeddings. Shape (V, E), floating point.
        num_prototypes: How many mixtures to draw, S.
        seed: Of their weights, which are normal and independent.

    Returns:
        One cosine per mixture. Shape (S,), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    mean_E = _mean_word(word_embeddings)
    mixtures_SE = mean_E.new_zeros(num_prototypes, len(mean_E))
    for part_CE in torch.split(word_embeddings, _WORDS_AT_ONCE):
        weights_SC = torch.randn(num_prototypes, len(part_CE), generator=generator)
        mixtures_SE += weights_SC.to(mean_E.device) @ (part_CE.float() - mean_E)
    cosines_SK, _ = _nearest(mixtures_SE, word_embeddings, mean_E, 1)
    return cosines_SK[:, 0]


def _mean_word(words: Tensor) -> Tensor:
    """(V, E) -> (E,), float32."""
    return words.mean(dim=0, dtype=torch.float32)


def _nearest(centred: Tensor, words: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest cosines of centred prototypes (S, E) with centred words: values and ids, (S, K)."""
    directions_SE = F.normalize(centred, dim=1)
    best_SK = directions_SE.new_empty(len(centred), 0)
    ids_SK = torch.empty(best_SK.shape, dtype=torch.int64, device=best_SK.device)
    for begin in range(0, len(words), _WORDS_AT_ONCE):
        part_CE = F.normalize(words[begin : begin + _WORDS_AT_ONCE].float() - mean, dim=1)
        part_ids = torch.arange(begin, begin + len(part_CE), device=ids_SK.device)
        both = torch.cat([best_SK, directions_SE @ part_CE.T], dim=1)
        both_ids = torch.cat([ids_SK, part_ids.expand(len(centred), -1)], dim=1)
        best_SK, chosen = both.topk(min(count, both.shape[1]), dim=1)
        ids_SK = both_ids.gather(1, chosen)
    return best_SK, ids_SK


@contextmanager
def observing(layer: ReprogrammingLayer) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record what the layer is given, patches (R, P, D) and prototypes (S, E), at each forward."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(module: object, inputs: tuple[Tensor, Tensor]) -> None:
        seen.append((inputs[0].detach(), inputs[1].detach()))

    handle = layer.register_forward_pre_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


def attention_in_parts(
    layer: ReprogrammingLayer, patches: Tensor, prototypes: Tensor
) -> Iterator[Tensor]:
    """Yield the attention of all rows (R, P, D) in order, as many rows at once as memory allows.

    Yields:
        Shape (r, G, P, S), float32; the r add up to R.
    """
    per_row = layer.n_heads * patches.shape[1] * len(prototypes)
    for part in torch.split(patches, max(1, _WEIGHTS_AT_ONCE // per_row)):
        yield layer.attention(part, prototypes)


class AttentionSums:
    """Which prototypes many patches attend to, summed up part by part."""

    def __init__(self, n_heads: int, num_prototypes: int) -> None:
        self._per_head_GS = torch.zeros(n_heads, num_prototypes, dtype=torch.float64)
        self._wins_S = torch.zeros(num_prototypes, dtype=torch.int64)
        self._entropy = 0.0
        self.num_patches = 0
        """Patches added so far, of all rows."""

    def add(self, attention: Tensor) -> None:
        """Add the attention of some rows. Shape (R, G, P, S)."""
        mean_QS = attention.mean(dim=1).flatten(0, 1)
        self._per_head_GS += attention.sum(dim=(0, 2), dtype=torch.float64).cpu()
        wins = mean_QS.argmax(dim=1).cpu()
        self._wins_S += torch.bincount(wins, minlength=len(self._wins_S))
        self._entropy += float(torch.special.entr(mean_QS).sum(dtype=torch.float64))
        self.num_patches += len(mean_QS)

    @property
    def usage_per_head(self) -> Tensor:
        """Mean attention of a patch to each prototype, by head. Shape (G, S), float64."""
        return self._per_head_GS / self.num_patches

    @property
    def usage(self) -> Tensor:
        """Mean attention of a patch to each prototype over the heads. Shape (S,), float64."""
        return self.usage_per_head.mean(dim=0)

    @property
    def share_first(self) -> Tensor:
        """Share of the patches that attend to each prototype most. Shape (S,), float64."""
        return self._wins_S.double() / self.num_patches

    @property
    def prototypes_used(self) -> float:
        """exp(entropy) of the usage: how many prototypes, used alike, would look the same."""
        return float(torch.special.entr(self.usage).sum().exp())

    @property
    def prototypes_per_patch(self) -> float:
        """exp(mean entropy) of a patch's attention; S where it does not prefer any."""
        return float(torch.tensor(self._entropy / self.num_patches).exp())

    @property
    def bits_per_patch(self) -> float:
        """What the patch tells of the prototype: their mutual information. 0: all patches alike."""
        entropy = float(torch.special.entr(self.usage).sum()) - self._entropy / self.num_patches
        return max(0.0, entropy) / float(torch.log(torch.tensor(2.0)))
