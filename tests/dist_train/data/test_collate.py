"""dist_train/data/collate.py: batches hold the windows asked for, also out of workers."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dist_train.data.collate import Collator, make_loader
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import EvaluationBatch, EvaluationSampler, GlobalBatchSampler
from dist_train.data.windows import WindowSet
from model.config import ModelConfig
from tests.helpers.waiting import wait_until


@pytest.fixture
def windows() -> WindowSet:
    values = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    return WindowSet([values], [(0, 60)], 16, 4)


@pytest.fixture
def builder(tokenizer: PreTrainedTokenizerFast) -> PromptBuilder:
    return PromptBuilder(tokenizer, ModelConfig(), 4, 16, ["demand"])


def test_a_batch_is_what_the_windows_and_the_builder_give(
    windows: WindowSet, builder: PromptBuilder
):
    batch = Collator(windows, builder)([5, 3])
    contexts, targets = windows.batch([5, 3])
    ids, mask = builder(contexts)  # type: ignore[misc]
    assert torch.equal(batch.context, torch.from_numpy(contexts))
    assert torch.equal(batch.target, torch.from_numpy(targets))
    assert batch.window_ids.tolist() == [5, 3]
    assert batch.num_valid == 2
    assert batch.inputs.context is batch.context
    assert torch.equal(batch.inputs.prompt_ids, ids)  # type: ignore[arg-type]
    assert torch.equal(batch.inputs.prompt_mask, mask)  # type: ignore[arg-type]


def test_repeats_are_there_but_do_not_count(windows: WindowSet):
    batch = Collator(windows, None)(EvaluationBatch([8, 8, 8], 1))
    assert batch.window_ids.tolist() == [8, 8, 8]
    assert batch.num_valid == 1
    assert batch.prompt_ids is None
    assert batch.inputs.prompt_mask is None


def test_a_batch_moves_whole(windows: WindowSet, builder: PromptBuilder):
    batch = Collator(windows, builder)([0, 1]).to("meta")
    tensors = [batch.context, batch.target, batch.window_ids, batch.prompt_ids, batch.prompt_mask]
    assert {tensor.device.type for tensor in tensors} == {"meta"}  # type: ignore[union-attr]
    assert batch.num_valid == 2


def test_a_collator_travels_to_a_worker(windows: WindowSet, builder: PromptBuilder):
    there = pickle.loads(pickle.dumps(Collator(windows, builder)))
    assert torch.equal(there([2]).context, Collator(windows, builder)([2]).context)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_follows_its_sampler(windows: WindowSet, builder: PromptBuilder, num_workers: int):
    sampler = GlobalBatchSampler(len(windows), 8, 4, 1, 2, seed=0)
    loader = make_loader(windows, sampler, builder, num_workers)
    assert [batch.window_ids.tolist() for batch in loader] == list(sampler)
    sampler.set_position(1, 3)
    batches = list(loader)
    assert [batch.window_ids.tolist() for batch in batches] == list(sampler)
    expected = Collator(windows, builder)(batches[0].window_ids.tolist())
    assert torch.equal(batches[0].prompt_ids, expected.prompt_ids)  # type: ignore[arg-type]


def test_an_evaluation_loader_scores_each_window_once(windows: WindowSet):
    counted: list[int] = []
    for rank in range(2):
        loader = make_loader(windows, EvaluationSampler(len(windows), 7, rank, 2), None, 0)
        for batch in loader:
            counted += batch.window_ids[: batch.num_valid].tolist()
    assert counted == list(range(len(windows)))


WITH_WORKERS = """
import multiprocessing, os, signal, sys, time
import numpy as np
from dist_train.data.collate import make_loader
from dist_train.data.windows import WindowSet
values = np.zeros((400, 2), dtype=np.float32)
windows = WindowSet([values], [(0, 400)], 16, 4)
batches = iter(make_loader(windows, [[number] for number in range(60)], None, 2))
taken = [next(batches).window_ids.item() for _ in range(2)]  # both workers have begun
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    time.sleep(0.1)
    taken += [next(batches).window_ids.item() for _ in range(10)]
print(*taken)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
sys.kept = batches  # to the very end
raise SystemExit(75)
"""


@pytest.mark.slow
def test_workers_outlive_the_signals_of_a_launcher_and_not_their_rank():
    done = subprocess.run(
        [sys.executable, "-c", WITH_WORKERS], text=True, timeout=200, capture_output=True
    )
    assert done.returncode == 75, done.stderr
    assert not done.stderr  # the loader's own watch over its workers must not cry at the end
    taken, workers = done.stdout.splitlines()
    assert taken.split() == [str(number) for number in range(42)]
    assert len(workers.split()) == 2
    wait_until(lambda: not any(Path("/proc", pid).exists() for pid in workers.split()), 20)
