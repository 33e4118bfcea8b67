"""memory_index/faiss_training.py: what the shards of one index share, also out of a file."""

import faiss
import numpy as np
import pytest
import torch
from torch import Tensor

from memory_index.faiss_ivf import encode_keys
from memory_index.faiss_training import train_codes, trained_index
from tests.memory_index.shards import IVF_KINDS, choice_of

WIDTH, NLIST = 8, 6


def vectors(count: int = 600, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(NLIST, width, generator=generator) * 5
    owner = torch.arange(count) % NLIST
    return centres[owner] + torch.randn(count, width, generator=generator)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("ivf_flat", 0), ("ivf_sq8", 2 * WIDTH), ("ivf_pq", 256 * WIDTH)],
)
def test_centroids_and_codebook_have_the_size_of_the_kind(kind: str, numbers: int):
    trained = train_codes(choice_of(kind, NLIST), vectors())
    assert trained["centroids"].shape == (NLIST, WIDTH)
    assert trained["codebook"].shape == (numbers,)
    assert {part.dtype for part in trained.values()} == {torch.float32}


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_training_twice_gives_the_same_numbers(kind: str):
    one, other = (train_codes(choice_of(kind, NLIST), vectors()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in ("centroids", "codebook"))


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_every_centroid_is_the_mean_of_the_vectors_nearest_to_it(kind: str):
    # Well separated clusters: k-means has converged after its few rounds.
    centroids = train_codes(choice_of(kind, NLIST), vectors())["centroids"]
    nearest = torch.cdist(vectors(), centroids).argmin(dim=1)
    means = torch.stack([vectors()[nearest == number].mean(dim=0) for number in range(NLIST)])
    torch.testing.assert_close(centroids, means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8"])
def test_codes_keep_the_keys_to_within_their_rounding(kind: str):
    keys, choice = vectors(), choice_of(kind, NLIST)
    index = trained_index(choice, train_codes(choice, keys))
    decoded = torch.from_numpy(index.sa_decode(encode_keys(index, keys).numpy()))
    residuals = keys - keys.mean(dim=0)
    step = float(residuals.max() - residuals.min()) / 255
    assert (decoded - keys).abs().max() <= (1e-6 if kind == "ivf_flat" else step)


def test_product_codes_keep_most_of_what_the_centroids_leave():
    keys, choice = vectors(3000), choice_of("ivf_pq", NLIST)
    trained = train_codes(choice, keys)
    index = trained_index(choice, trained)
    decoded = torch.from_numpy(index.sa_decode(encode_keys(index, keys).numpy()))
    left_by_centroids = torch.cdist(keys, trained["centroids"]).amin(dim=1).square().mean()
    # One byte for 4 dimensions of white noise: rate distortion allows 2^(-2 * 8 / 4) = 1/16.
    assert (decoded - keys).square().sum(dim=1).mean() < 0.35 * left_by_centroids


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_an_index_made_from_arrays_codes_as_one_that_faiss_trained_whole(kind: str):
    choice, keys = choice_of(kind, NLIST), vectors(1000)
    trained = train_codes(choice, keys)
    one, other = trained_index(choice, trained), trained_index(choice, trained)
    assert torch.equal(encode_keys(one, keys), encode_keys(other, keys))

    quantiser = faiss.IndexFlatL2(WIDTH)
    quantiser.add(trained["centroids"].numpy())
    spec = {"ivf_flat": "Flat", "ivf_sq8": "SQ8", "ivf_pq": f"PQ{WIDTH // 4}x8"}[kind]
    whole = faiss.index_factory(WIDTH, f"IVF{NLIST},{spec}")
    whole.quantizer, whole.own_fields, whole.quantizer_trains_alone = quantiser, False, 0
    whole.is_trained = False
    if kind == "ivf_pq":
        whole.do_polysemous_training = False
    whole.train(np.ascontiguousarray(keys.numpy()))
    assert np.array_equal(whole.sa_encode(keys.numpy()), encode_keys(one, keys).numpy())


def test_few_keys_are_enough_for_lists():
    choice = choice_of("ivf_sq8", 1)
    trained = train_codes(choice, vectors(1))
    assert torch.equal(trained["centroids"], vectors(1))


@pytest.mark.parametrize(("kind", "fewest"), [("ivf_flat", 1), ("ivf_sq8", 1), ("ivf_pq", 256)])
def test_refuses_to_learn_from_too_few_keys(kind: str, fewest: int):
    message = f"bank.index={kind} learns from at least {fewest} entries, the bank has {fewest - 1}"
    with pytest.raises(ValueError, match=message):
        train_codes(choice_of(kind, 1), vectors(fewest - 1))
    train_codes(choice_of(kind, 1), vectors(fewest))


def test_training_on_a_small_bank_prints_no_warning(capfd: pytest.CaptureFixture[str]):
    train_codes(choice_of("ivf_pq", NLIST), vectors(300))
    assert capfd.readouterr() == ("", "")


def test_refuses_centroids_of_another_number_of_lists():
    trained = train_codes(choice_of("ivf_flat", NLIST), vectors())
    with pytest.raises(ValueError, match=r"centroids have shape \(6, 8\), expected 7 lists"):
        trained_index(choice_of("ivf_flat", 7), trained)


@pytest.mark.parametrize(("kind", "needed"), [("ivf_sq8", 16), ("ivf_pq", 2048)])
def test_refuses_a_codebook_of_another_kind(kind: str, needed: int):
    trained = train_codes(choice_of("ivf_flat", NLIST), vectors())
    message = f"codebook has 0 numbers, {kind} needs {needed}: build the bank anew"
    with pytest.raises(ValueError, match=message):
        trained_index(choice_of(kind, NLIST), trained)
