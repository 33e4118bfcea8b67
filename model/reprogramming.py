"""Express patches in the language model's own terms: attention from patches to text prototypes.

Shape legend (this file):
    R  rows, one per (window, variate)     V  vocabulary of the language model
    P  patches per row                     S  num_prototypes
    D  d_model                             E  hidden width of the language model
    G  n_heads                             W  d_ff, key width of one head
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextPrototypes(nn.Module):
    """Condense the vocabulary to a few prototypes by one learned linear map.

    Source: Time-LLM, Jin et al. 2024 (arXiv:2310.01728), section 3.2.

    A prototype is a weighted sum of word embeddings. The V weights of a prototype act only
    through the E directions that the embeddings have, and the embeddings are frozen. The factored
    map therefore trains E numbers per prototype in place of V, over a fixed basis of the same
    span (:func:`word_basis`): every set of prototypes that one map can make, the other can too.
    """

    def __init__(self, vocab_size: int, num_prototypes: int, *, width: int | None = None) -> None:
        """Make the map, with Time-LLM's spread of initial prototypes.

        Args:
            vocab_size: V.
            num_prototypes: S.
            width: E, for the factored map; None: one number per word.
        """
        super().__init__()
        self.is_factored = width is not None
        self.mapping = nn.Linear(vocab_size if width is None else width, num_prototypes)
        # Weights of the words, seen through orthonormal directions, spread as the words' own do.
        bound = vocab_size**-0.5
        nn.init.uniform_(self.mapping.weight, -bound, bound)
        nn.init.uniform_(self.mapping.bias, -bound, bound)

    def forward(self, words: Tensor) -> Tensor:
        """Map words to prototypes.

        Args:
            words: The backbone's input embeddings, shape (V, E); for the factored map their
                basis, shape (E, E). Floating point.

        Returns:
            ``mapping.weight @ words + bias``. Shape (S, E), of the parameters' type.

        Raises:
            ValueError: Another vocabulary, or width, than this layer was built for.
        """
        if words.ndim != 2 or words.shape[0] != self.mapping.in_features:
            what = "basis of width" if self.is_factored else "vocabulary of"
            raise ValueError(
                f"words has shape {tuple(words.shape)}: this layer was built for a {what} "
                f"{self.mapping.in_features}; pass that many rows."
            )
        words = words.to(self.mapping.weight.dtype)
        # Through the layer's forward, not its weight: ZeRO-3 gathers a weight only for its owner.
        prototypes_ES: Tensor = self.mapping(words.T)
        return prototypes_ES.T

    def word_weights(self, words: Tensor, word_embeddings: Tensor) -> Tensor:
        """The weight of each word in each prototype: for the factored map, the smallest such.

        Args:
            words: As in :meth:`forward`.
            word_embeddings: The backbone's input embeddings. Shape (V, E), floating point.

        Returns:
            Shape (S, V), float32.
        """
        weight = self.mapping.weight.float()
        if not self.is_factored:
            return weight
        inverse_EE = torch.linalg.pinv(words, rtol=1e-5, hermitian=True)
        weights_SV: Tensor = (weight @ inverse_EE) @ word_embeddings.float().T
        return weights_SV


def word_basis(word_embeddings: Tensor) -> Tensor:
    """Make a basis of what word embeddings span, as long as they are: ``sqrt(W' W)``.

    ``W = Q @ basis`` with orthonormal columns Q, so a weight per word and a weight per direction
    have the same meaning and the same gradient, ``weight_E = weight_V @ Q``.

    Args:
        word_embeddings: W. Shape (V, E), floating point.

    Returns:
        The symmetric square root of the Gram matrix. Shape (E, E), float32.
    """
    gram_EE = torch.zeros(word_embeddings.shape[1], word_embeddings.shape[1], dtype=torch.float64,
                          device=word_embeddings.device)  # fmt: skip
    # In parts: a vocabulary in float64 need not be held at once.
    for part in torch.split(word_embeddings, 8192):
        gram_EE += part.double().T @ part.double()
    values_E, vectors_EE = torch.linalg.eigh(gram_EE)
    root_EE: Tensor = (vectors_EE * values_E.clamp_min(0).sqrt()) @ vectors_EE.T
    return root_EE.float()


class ReprogrammingLayer(nn.Module):
    """Multi-head cross-attention: queries from patches, keys and values from prototypes.

    Source: Time-LLM, Jin et al. 2024 (arXiv:2310.01728), section 3.2, equation 1. As in its code
    a head's key width is ``d_ff``, not ``d_model / n_heads``.
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int, d_llm: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, n_heads * d_ff)
        self.key = nn.Linear(d_llm, n_heads * d_ff)
        self.value = nn.Linear(d_llm, n_heads * d_ff)
        self.out = nn.Linear(n_heads * d_ff, d_llm)

    def forward(self, patches: Tensor, prototypes: Tensor) -> Tensor:
        """Attend from every patch to all prototypes.

        Args:
            patches: Patch embeddings. Shape (R, P, D), of the parameters' type.
            prototypes: Text prototypes. Shape (S, E), of the parameters' type.

        Returns:
            Patch tokens of the language model's width. Shape (R, P, E).

        Raises:
            ValueError: ``patches`` is not 3-D, or ``prototypes`` is not 2-D.
        """
        queries_GQW, keys_GSW = self._project(patches, prototypes)
        values_GSW = self._split_heads(self.value(prototypes))
        attended_GQW = F.scaled_dot_product_attention(
            queries_GQW[None],
            keys_GSW[None],
            values_GSW[None],
            dropout_p=self.dropout if self.training else 0.0,
        )[0]
        tokens_QE: Tensor = self.out(attended_GQW.transpose(0, 1).flatten(1))
        return tokens_QE.view(*patches.shape[:2], -1)

    @torch.no_grad()
    def attention(self, patches: Tensor, prototypes: Tensor) -> Tensor:
        """Compute the weights that :meth:`forward` gives the prototypes, which it never keeps.

        Args:
            patches: As in :meth:`forward`.
            prototypes: As in :meth:`forward`.

        Returns:
            Weights without dropout, each patch's sum to one in every head. Shape (R, G, P, S),
            float32.

        Raises:
            ValueError: As :meth:`forward`.
        """
        queries_GQW, keys_GSW = self._project(patches, prototypes)
        scores_GQS = queries_GQW @ keys_GSW.transpose(1, 2) / queries_GQW.shape[-1] ** 0.5
        weights_GQS = torch.softmax(scores_GQS.float(), dim=-1)
        return weights_GQS.view(self.n_heads, *patches.shape[:2], -1).transpose(0, 1)

    def _project(self, patches: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (G, Q, W) and keys (G, S, W) of all heads; Q is R * P, row by row.

        All rows share the prototypes, so rows and patches form one long axis of queries and
        neither keys nor values are repeated per row.
        """
        if patches.ndim != 3 or prototypes.ndim != 2:
            raise ValueError(
                f"patches and prototypes have shapes {tuple(patches.shape)} and "
                f"{tuple(prototypes.shape)}: pass (R, P, D) and (S, E)."
            )
        queries_GQW = self._split_heads(self.query(patches.flatten(0, 1)))
        return queries_GQW, self._split_heads(self.key(prototypes))

    def _split_heads(self, rows: Tensor) -> Tensor:
        """(n, G * W) -> (G, n, W)."""
        return rows.view(len(rows), self.n_heads, -1).transpose(0, 1)
