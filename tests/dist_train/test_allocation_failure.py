"""dist_train/allocation_failure.py: the errors of torch, NumPy and FAISS, as they really are."""

import errno
import resource
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch

from dist_train.allocation_failure import find_failure
from memory_index.groups import OtherRankError

HUGE = 2**46
GIB = 2**30

# As torch 2.13 writes it on a GPU.
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 3 has a total capacity of 79.25 GiB of "
    "which 1.00 GiB is free. Process 12 has 30.00 GiB memory in use. Process 13 has 512.00 MiB "
    "memory in use. Including non-PyTorch memory, this process has 40.00 GiB memory in use. Of the "
    "allocated memory 35.00 GiB is allocated by PyTorch, and 3.25 GiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def test_torch_on_a_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(HUGE, dtype=torch.uint8)
    failure = find_failure(caught.value)
    assert failure is not None
    assert (failure.where, failure.requested) == ("host", HUGE)


def test_numpy():
    with pytest.raises(MemoryError) as caught:
        np.empty(HUGE, dtype=np.uint8)
    failure = find_failure(caught.value)
    assert failure is not None
    assert (failure.where, failure.requested) == ("host", HUGE)


def test_faiss():
    with pytest.raises((MemoryError, RuntimeError), match="bad_alloc") as caught:
        faiss.Float32Vector().resize(HUGE)
    failure = find_failure(caught.value)
    assert failure is not None
    assert failure.where == "host"


def test_torch_on_a_gpu():
    failure = find_failure(torch.OutOfMemoryError(CUDA_TEXT))
    assert failure is not None
    assert (failure.where, failure.gpu) == ("gpu", 3)
    assert failure.requested == 2.5 * GIB
    assert failure.capacity == 79.25 * GIB
    assert failure.others == 30.5 * GIB
    assert failure.unused == 3.25 * GIB


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), "host"),
        (RuntimeError("Error in faiss::...: std::bad_alloc"), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "gpu"),
        (RuntimeError("CUDA error: out of memory"), "gpu"),
        (
            RuntimeError("StandardGpuResources: alloc fail: cudaMalloc error out of memory [2]"),
            "gpu",
        ),
        (
            RuntimeError("Caught MemoryError in DataLoader worker process 0.\nstd::bad_alloc"),
            "host",
        ),
    ],
)
def test_other_texts(error: Exception, where: str):
    failure = find_failure(error)
    assert failure is not None
    assert failure.where == where
    assert failure.requested is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Unable to allocate 3 seats"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive"),  # memory is left: it has another cause
        # The rank whose memory was used up says so itself.
        OtherRankError("Saving failed on rank 1: MemoryError: Unable to allocate 3.00 GiB"),
    ],
)
def test_anything_else_is_no_such_failure(error: Exception):
    assert find_failure(error) is None


def test_as_the_cause_or_the_context_of_another_error():
    caused = ValueError("the batch")
    caused.__cause__ = MemoryError()
    while_handled = ValueError("shut down")
    while_handled.__context__ = caused
    for error in (caused, while_handled):
        failure = find_failure(error)
        assert failure is not None
        assert isinstance(failure.error, MemoryError)
    unrelated = ValueError("told apart by from None")
    unrelated.__context__ = MemoryError()
    unrelated.__suppress_context__ = True
    assert find_failure(unrelated) is None


def test_errors_in_a_circle_end():
    one, two = ValueError(), ValueError()
    one.__context__, two.__context__ = two, one
    assert find_failure(one) is None


def test_onednn_does_not_say_why_but_memory_is_used_up():
    script = """
import resource
from dist_train.allocation_failure import find_failure
from dist_train.process_memory import measure
error = RuntimeError("could not create a primitive")
before = find_failure(error)
most = measure().virtual + (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
print(before, find_failure(error).where)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.split() == ["None", "host"]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
