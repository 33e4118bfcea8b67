"""dist_train/out_of_memory.py: one line. That memory really runs out: tests/integration."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from dist_train import cli, out_of_memory, train
from dist_train.allocation_failure import AllocationFailure
from dist_train.config import RunConfig
from dist_train.memory_account import FailedPhase, MemoryAccount, account
from dist_train.process_memory import MemoryUse

GIB = 2**30


class Account(MemoryAccount):
    """One whose parts have grown by given numbers of bytes on the GPU."""

    def __init__(self, **grown: int) -> None:
        super().__init__()
        self._grown = {name: MemoryUse(gpu=size) for name, size in grown.items()}


def failure(**facts: Any) -> AllocationFailure:
    found = {"where": "gpu", "gpu": 1, "capacity": 80 * GIB, "requested": 2 * GIB} | facts
    return AllocationFailure(error=MemoryError(), **found)


def failed(name: str, of: AllocationFailure) -> FailedPhase:
    return FailedPhase(
        name=name, failure=of, grown=MemoryUse(gpu=40 * GIB), use=MemoryUse(gpu=79 * GIB)
    )


def test_the_line_names_rank_place_part_and_rung(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    grown = Account(backbone=30 * GIB, optimizer=8 * GIB, data=GIB // 100, forward=GIB)
    line = out_of_memory.message(failure(), failed("forward", failure()), grown, RunConfig())
    assert line == (
        "rank 3 of 4: out of memory of GPU 1 of 80.00 GiB while computing forward: 2.00 GiB more "
        "were asked for. Activations had grown by 40.00 GiB, 79.00 GiB are in use (grown before: "
        "frozen weights 30.00 GiB, optimizer state 8.00 GiB). Next: --train.micro_batch_size 4 "
        "(the batch stays 32, in 2 passes of each rank). Leaving the model as it is: "
        "--backbone.activation_checkpointing true (recomputes the blocks)."
    )


def test_what_else_is_on_the_gpu():
    full = failure(others=30 * GIB, unused=4 * GIB)
    line = out_of_memory.message(full, None, MemoryAccount(), RunConfig())
    assert "other processes hold 30.00 GiB of that GPU" in line
    assert "4.00 GiB lie unused in pieces: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in line
    assert "had grown" not in line  # nobody announced a phase
    assert "Next: --train.micro_batch_size 16" in line
    line = out_of_memory.message(failure(), None, MemoryAccount(), RunConfig())
    assert "other processes" not in line
    assert "expandable_segments" not in line


def test_the_end_of_the_ladder():
    config = replace(RunConfig(), backbone=replace(RunConfig().backbone, llm_layers=1))
    config = replace(config, backbone=replace(config.backbone, load_in_4bit=True))
    line = out_of_memory.message(failure(), failed("backbone", failure()), MemoryAccount(), config)
    assert line.endswith(
        "No setting is left to lower for that: use a smaller backbone.name, more GPUs or larger "
        "ones."
    )


def test_host_memory_says_what_limits_it():
    on_host = failure(where="host", gpu=None, capacity=None, requested=None)
    line = out_of_memory.message(on_host, failed("data", on_host), MemoryAccount(), RunConfig())
    assert line.startswith("out of host memory (")
    assert ", the machine's) while reading the data. " in line or "of its cgroup) while" in line
    assert "fewer columns (data.columns)" in line


def run_out(config: RunConfig, *resume: object) -> dict[str, Any]:
    with account.phase("optimizer"):
        tensor = torch.ones(1000)
        _tensors.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


_tensors: list["weakref.ref[torch.Tensor]"] = []


def test_a_training_ends_with_the_line_alone_and_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setattr(train, "run_training", run_out)
    assert train.main([]) == out_of_memory.EXIT_CODE == 71
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "error: out of memory of GPU 0 while updating the weights: 20 MiB"
    )
    assert captured.err.count("\n") == 1
    assert "Next: --data.seq_len 256" in captured.err


def test_the_tensors_of_the_run_are_let_go_before_the_line_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setattr(train, "run_training", run_out)
    alive: list[bool] = []
    plain = out_of_memory.message

    def message(*arguments: Any) -> str:
        alive.append(_tensors[-1]() is not None)
        return plain(*arguments)

    monkeypatch.setattr(out_of_memory, "message", message)
    gc.disable()
    try:
        train.main([])
    finally:
        gc.enable()
    assert alive == [False]
    capsys.readouterr()


def test_the_traceback_is_there_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setenv("TIMELLM_TRACEBACK", "1")
    monkeypatch.setattr(train, "run_training", run_out)
    assert train.main([]) == out_of_memory.EXIT_CODE
    told = capsys.readouterr().err
    assert "in run_out" in told
    assert told.splitlines()[-1].startswith("error: out of memory of GPU 0")


def test_other_commands_say_it_in_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command(argv: Any) -> int:
        raise MemoryError

    monkeypatch.setitem(cli.COMMANDS, "evaluate", command)
    assert cli.main(["evaluate"]) == out_of_memory.EXIT_CODE
    told = capsys.readouterr().err
    assert told.startswith("error: out of host memory (")
    assert told.endswith("Use a smaller batch, or more memory.\n")
