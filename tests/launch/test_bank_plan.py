"""Banks: sizes as the index keeps them, exchanges as the search sends them."""

import dataclasses

import pytest

from dist_train.config import RunConfig
from dist_train.shapes import published_shape
from launch.bank_plan import FAISS_SCRATCH, BankPlan, key_width, plan_bank
from launch.workload import workload_of
from memory_index.config import BankConfig
from memory_index.exact_shard import ExactShard
from model.config import BackboneConfig, GramConfig


def bank(entries: int, *, ranks: int = 1, on_gpu: bool = False, config: RunConfig | None = None,
         **settings: object) -> BankPlan:  # fmt: skip
    config = config or RunConfig(bank=BankConfig(**settings))  # type: ignore[arg-type]
    return plan_bank(config, entries, 224, ranks=ranks, ranks_per_node=8, on_gpu=on_gpu)


def test_an_exact_index_takes_what_its_tensors_take():
    import torch

    shard = ExactShard(torch.randn(100, 256), torch.arange(100))
    kept = shard.keys.nbytes + shard.ids.nbytes + shard._norms_M.nbytes
    assert bank(100, index="exact").index_bytes == kept


@pytest.mark.parametrize(("kind", "size"), [("ivf_flat", 1032), ("ivf_sq8", 264), ("ivf_pq", 72)])
def test_an_entry_takes_what_was_measured(kind: str, size: int):
    # benchmarks/RESULTS.md, retrieval.
    assert bank(10**6, index=kind).entry_bytes == size


def test_searches_take_what_was_measured():
    # benchmarks/RESULTS.md: the rates come from a million entries, ten million were not used.
    flat = bank(1_004_479, index="flat", memory_gib=8)
    assert flat.search_cpu_s == pytest.approx(1.234, rel=0.001)
    anchored = RunConfig(
        gram=GramConfig(retrieval_key="anchored"), bank=BankConfig(index="ivf_sq8", memory_gib=8)
    )
    assert bank(10_025_400, config=anchored).search_cpu_s == pytest.approx(0.421, rel=0.05)
    for kind, seconds in (("ivf_flat", 0.099), ("ivf_sq8", 0.066), ("ivf_pq", 0.097)):
        found = bank(1_004_479, index=kind, nprobe=32)
        assert found.search_cpu_s == pytest.approx(seconds, rel=0.01)


def test_exchanges_are_those_of_the_step_time():
    config = RunConfig(
        backbone=BackboneConfig(name="openai-community/gpt2"),
        bank=BankConfig(shard_group="world"), gram=GramConfig(use_gram=True),
    )  # fmt: skip
    shape = published_shape("openai-community/gpt2", 12)
    work = workload_of(config, shape, 8, variates=7, bank_entries=10**6).search
    plan = plan_bank(config, 10**6, 28, ranks=8, ranks_per_node=8, on_gpu=True)
    assert work is not None
    assert work.queries == 28
    assert plan.answer_bytes_sent == 7 * work.queries * work.answer_bytes
    assert plan.query_bytes_sent == pytest.approx(7 * work.queries * work.query_bytes, rel=0.05)


def test_a_shared_index_divides_and_sends():
    alone, shared = bank(10**6), bank(10**6, ranks=8, shard_group="world")
    assert shared.rank_bytes == pytest.approx(alone.rank_bytes / 8, rel=0.1)
    assert alone.query_bytes_sent == alone.answer_bytes_sent == 0
    assert shared.answer_bytes_sent == 7 * 224 * 5 * 12


def test_learned_keys_are_encoded_anew_during_the_training():
    assert bank(10**6).memory.refreshed
    anchored = RunConfig(gram=GramConfig(retrieval_key="anchored"))
    assert not bank(10**6, config=anchored).memory.refreshed
    assert (key_width(RunConfig()), key_width(anchored)) == (256, 128)


def test_faiss_keeps_scratch_on_a_gpu():
    on_gpu, on_cpu = bank(10**6, on_gpu=True).memory, bank(10**6).memory
    assert on_gpu.on_device
    assert on_gpu.index - on_cpu.index == FAISS_SCRATCH
    assert on_gpu.building - on_cpu.building == FAISS_SCRATCH  # the next index has its own
    assert not bank(10**6, on_gpu=True, device="cpu").memory.on_device


def test_what_does_not_fit_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"bank.memory_gib=4: .*Raise it"):
        bank(10**9)
    assert bank(10**9, ranks=64).choice.group == "world"


def test_scratch_is_what_the_index_is_told():
    faiss_gpu = pytest.importorskip("memory_index.faiss_gpu")
    assert faiss_gpu.SCRATCH_BYTES == FAISS_SCRATCH
    assert dataclasses.is_dataclass(bank(10**5))
