"""What every shard of an approximate index shares: centroids and codebooks, trained once.

Shards with the same centroids and codebooks merge to what one index would find; independent ones
do not. They are kept as plain arrays, so that nothing of FAISS is deserialised from disk.

Shape legend (this file):
    V  training vectors     Z2  width of a key     nlist  lists
"""

import faiss
import numpy as np
import torch
from torch import Tensor

from memory_index.index_choice import IndexChoice, pq_bytes

KMEANS_ROUNDS = 10
SEED = 1234
# Of each sub-quantiser: one byte.
CODEWORDS = 256


def train_codes(choice: IndexChoice, vectors: Tensor) -> dict[str, Tensor]:
    """Train centroids and codebooks of an ivf kind.

    Args:
        choice: Kind and number of lists.
        vectors: An even sample of the keys. Shape (V, Z2), float32.

    Returns:
        ``centroids`` (nlist, Z2) and ``codebook`` (flat; empty for ivf_flat), float32.

    Raises:
        ValueError: There are fewer keys than centroids or codewords.
    """
    fewest = max(choice.nlist, CODEWORDS if choice.kind == "ivf_pq" else 1)
    if len(vectors) < fewest:
        raise ValueError(
            f"bank.index={choice.kind} learns from at least {fewest} entries, the bank has "
            f"{len(vectors)}: use bank.index=auto."
        )
    faiss.omp_set_num_threads(torch.get_num_threads())
    keys = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
    kmeans = faiss.Clustering(keys.shape[1], choice.nlist)
    kmeans.niter, kmeans.seed = KMEANS_ROUNDS, SEED
    kmeans.min_points_per_centroid = 1  # small banks are allowed; no warning on stderr
    kmeans.train(keys, faiss.IndexFlatL2(keys.shape[1]))
    centroids = faiss.vector_to_array(kmeans.centroids).reshape(choice.nlist, -1)
    index = _empty_index(choice, centroids)
    codebook = np.empty(0, dtype=np.float32)
    if choice.kind != "ivf_flat":
        index.train(keys)  # the centroids are known, so this trains the codes of the residuals
        codebook = faiss.vector_to_array(_codebook(index))
    return {
        "centroids": torch.from_numpy(centroids.copy()),
        "codebook": torch.from_numpy(codebook.copy()),
    }


def trained_index(choice: IndexChoice, trained: dict[str, Tensor]) -> "faiss.IndexIVF":
    """Make an empty FAISS index out of what :func:`train_codes` returned.

    Raises:
        ValueError: The arrays do not fit the kind.
    """
    centroids = trained["centroids"].numpy()
    if centroids.ndim != 2 or len(centroids) != choice.nlist:
        raise ValueError(
            f"the bank's centroids have shape {centroids.shape}, expected {choice.nlist} lists: "
            "build the bank anew."
        )
    index = _empty_index(choice, centroids)
    if choice.kind != "ivf_flat":
        target = _codebook(index)
        expected = target.size() or 2 * centroids.shape[1]  # sq8: a minimum and a range each
        codebook = trained["codebook"].numpy()
        if codebook.size != expected:
            raise ValueError(
                f"the bank's codebook has {codebook.size} numbers, {choice.kind} needs "
                f"{expected}: build the bank anew."
            )
        faiss.copy_array_to_vector(codebook, target)
    index.is_trained = True
    return index


def _empty_index(choice: IndexChoice, centroids: np.ndarray) -> "faiss.IndexIVF":
    width = centroids.shape[1]
    quantiser = faiss.IndexFlatL2(width)
    quantiser.add(centroids)
    if choice.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantiser, width, choice.nlist)
    elif choice.kind == "ivf_sq8":
        index = faiss.IndexIVFScalarQuantizer(
            quantiser, width, choice.nlist, faiss.ScalarQuantizer.QT_8bit
        )
    else:
        index = faiss.IndexIVFPQ(quantiser, width, choice.nlist, pq_bytes(width), 8)
        index.do_polysemous_training = False  # four times as long, and never used here
        index.pq.cp.min_points_per_centroid = 1
    index.quantizer_trains_alone = 0
    index.referenced_objects = [quantiser]  # FAISS itself only keeps a pointer
    index.cp.min_points_per_centroid = 1
    return index


def _codebook(index: "faiss.IndexIVF") -> "faiss.Float32Vector":
    return index.pq.centroids if isinstance(index, faiss.IndexIVFPQ) else index.sq.trained
