"""Memory is used up: one line that says where, which part grew, and what to change.

Exit code :data:`EXIT_CODE` (EX_OSERR of sysexits.h): the same run would fail again, so it is not
one to start anew. ``TIMELLM_TRACEBACK=1`` prints the traceback before the line.
"""

import gc
import os
import sys
import traceback

from dist_train.allocation_failure import AllocationFailure, chain, find_failure
from dist_train.config import RunConfig, fail, world_size_of_environment
from dist_train.memory_account import PHASES, FailedPhase, MemoryAccount, account
from dist_train.memory_ladder import next_rung, same_numbers
from dist_train.process_memory import MemoryUse, host_limit

EXIT_CODE = 71
WORTH_SAYING = 0.01
"""Share of the memory in use from which on a part is named."""

_GIB = 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory is used up."""
    return account.failed_phase(error) is not None or find_failure(error) is not None


def report(error: BaseException, config: RunConfig | None) -> int:
    """Print the line for an error of :func:`is_out_of_memory`; returns the exit code.

    Forgets the tracebacks, and with them the tensors of the run: there must be room to speak.

    Args:
        error: As it was caught.
        config: The run; None where it has not been read.
    """
    if os.environ.get("TIMELLM_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    failed = account.failed_phase(error)
    failure = find_failure(error) if failed is None else failed.failure
    assert failure is not None
    for one in {*chain(error), failure.error}:
        one.__traceback__ = None
    account.forget()
    gc.collect()
    fail(MemoryError(message(failure, failed, account, config)))
    return EXIT_CODE


def message(
    failure: AllocationFailure,
    failed: FailedPhase | None,
    grown: MemoryAccount,
    config: RunConfig | None,
) -> str:
    """Say in one line what ran out, where, which part grew, and what to do.

    Args:
        failure: What could not be had.
        failed: Where; None where no phase was announced.
        grown: What all parts have grown by.
        config: The run; None where it has not been read.
    """
    on_gpu = failure.where == "gpu"
    phase = None if failed is None else failed.name
    doing = "" if phase is None else f" while {PHASES[phase].doing}"
    asked = ""
    if failure.requested is not None:
        asked = f": {_gib(failure.requested)} more were asked for"
    ranks = world_size_of_environment()
    rank = f"rank {os.environ.get('RANK', '0')} of {ranks}: " if ranks > 1 else ""
    sentences = [f"{rank}out of {_what(failure)}{doing}{asked}"]
    if failed is not None:
        sentences.append(_growth(failed, grown, on_gpu=on_gpu))
    if failure.others > WORTH_SAYING * (failure.capacity or 1):
        sentences.append(f"other processes hold {_gib(failure.others)} of that GPU")
    if failure.unused > (failure.requested or _GIB):
        sentences.append(
            f"{_gib(failure.unused)} lie unused in pieces: "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True joins them"
        )
    return ". ".join([*sentences, *_advice(config, phase, ranks, on_gpu=on_gpu)]) + "."


def _what(failure: AllocationFailure) -> str:
    if failure.where == "gpu":
        capacity, number = _gpu(failure)
        size = "" if capacity is None else f" of {_gib(capacity)}"
        return f"memory of GPU {number}{size}"
    most, limit = host_limit()
    why = {
        "address space": "the limit of its address space, ulimit -v",
        "cgroup": "the limit of its cgroup",
        "machine": "the machine's",
    }[limit]
    return f"host memory ({_gib(most)}, {why})"


def _gpu(failure: AllocationFailure) -> tuple[int | None, int]:
    """Capacity and number of the GPU."""
    if failure.gpu is not None:
        return failure.capacity, failure.gpu
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, 0
    number = torch.cuda.current_device()
    return torch.cuda.get_device_properties(number).total_memory, number


def _growth(failed: FailedPhase, grown: MemoryAccount, *, on_gpu: bool) -> str:
    def number(use: MemoryUse) -> int:
        # Not the address space: it grows by every library that is imported.
        return use.gpu if on_gpu else use.resident

    part = PHASES[failed.name].part
    limited = not on_gpu and host_limit()[1] == "address space"
    text = (
        f"{part[0].upper()}{part[1:]} had grown by {_gib(max(0, number(failed.grown)))}, "
        f"{_gib(failed.use.virtual if limited else number(failed.use))} are in use"
    )
    earlier = {
        phase.part: number(grown.grown(name))
        for name, phase in PHASES.items()
        if name != failed.name and number(grown.grown(name)) > WORTH_SAYING * number(failed.use)
    }
    if earlier:
        parts = sorted(earlier.items(), key=lambda item: -item[1])
        text += " (grown before: " + ", ".join(f"{part} {_gib(size)}" for part, size in parts) + ")"
    return text


def _advice(config: RunConfig | None, phase: str | None, ranks: int, *, on_gpu: bool) -> list[str]:
    if config is None:
        return ["Use a smaller batch, or more memory"]
    rung = next_rung(config, phase, ranks)
    sentences = (
        [f"Next: {rung.options} ({rung.effect})"]
        if rung is not None
        else [
            "No setting is left to lower for that: use a smaller backbone.name, "
            + ("more GPUs or larger ones" if on_gpu else "a machine with more memory, fewer ranks")
            + (", or fewer columns (data.columns)" if phase == "data" else "")
        ]
    )
    exact = same_numbers(config, phase, ranks, on_gpu=on_gpu)
    if exact:
        options = ", ".join(f"{one.options} ({one.effect})" for one in exact)
        sentences.append(f"Leaving the model as it is: {options}")
    return sentences


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.0f} MiB"
