from math import ceil

import pytest

from dist_train.config import ConfigError, RunConfig, build_parser, parse_run_config
from dist_train.engine import BUCKET as ENGINE_BUCKET
from dist_train.flops import MicroBatch, micro_batch_flops, total_flops
from dist_train.parameter_counts import count_parameters
from dist_train.shapes import published_shape
from launch.workload import BUCKET, KEPT, VISITED_SHARE, workload_of
from memory_index.config import BankConfig
from memory_index.index_choice import choose_index

SHAPE = published_shape("openai-community/gpt2", 12)
MANY = 10_000_000


def config_of(*overrides: str) -> RunConfig:
    start = ["--backbone.name=openai-community/gpt2", "--train.batch_size=32",
             "--gram.use_gram=true", "--bank.memory_gib=12"]  # fmt: skip
    return parse_run_config(build_parser("test"), [*start, *overrides])[0]


def test_buckets_are_the_engines():
    assert BUCKET == ENGINE_BUCKET
    config = config_of("--model.prototype_map=vocabulary")
    work = workload_of(config, SHAPE, 1, variates=7)
    assert work.trained_weights == count_parameters(config, SHAPE).trained_total
    assert work.buckets == ceil(work.trained_weights / BUCKET) == 3


def test_a_step_is_its_micro_batches():
    work = workload_of(config_of("--train.micro_batch_size=2"), SHAPE, 4, variates=7)
    assert (work.windows, work.micro_batches) == (32, 4)
    batch = MicroBatch(windows=2, variates=7, prompt_tokens=114, common_tokens=47)
    assert work.flops == total_flops(micro_batch_flops(config_of(), SHAPE, batch))


def test_a_batch_that_does_not_divide_is_refused_as_the_training_does():
    with pytest.raises(ConfigError, match=r"train.batch_size=32 does not divide over 3 ranks"):
        workload_of(config_of(), SHAPE, 3, variates=1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_updates_its_part_alone_unless_nothing_is_divided(stage: int):
    config = config_of(f"--deepspeed.zero_stage={stage}")
    alone, shared = (workload_of(config, SHAPE, ranks, variates=7) for ranks in (1, 8))
    parts = 1 if stage == 0 else 8
    assert shared.optimizer_bytes == pytest.approx(alone.optimizer_bytes / parts, rel=1e-5)
    assert shared.gradient_bytes == alone.gradient_bytes == 2 * alone.trained_weights


def test_four_bits_shrink_the_matrices_alone():
    config = config_of("--backbone.name=meta-llama/Llama-3.1-70B", "--backbone.llm_layers=80")
    llama = published_shape("meta-llama/Llama-3.1-70B", 80)
    counts = count_parameters(config, llama)
    rest = 2 * (counts.frozen_rest + counts.trained_total)
    packed_config = config_of("--backbone.load_in_4bit=true")
    whole, packed = (
        workload_of(one, llama, 8, variates=7).gathered_bytes for one in (config, packed_config)
    )
    # Forward and backward, but for what is still there.
    assert whole == pytest.approx(2 * (2 * counts.frozen_matrices + rest) - 2 * KEPT)
    per_matrix_weight = ((packed + 2 * KEPT) / 2 - rest) / counts.frozen_matrices
    assert 0.5 < per_matrix_weight < 0.53


def test_a_small_model_is_gathered_once():
    counts = count_parameters(config_of(), SHAPE)
    work = workload_of(config_of(), SHAPE, 8, variates=7)
    assert work.gathered_bytes == 2 * (counts.frozen_total + counts.trained_total)
    assert work.gathers == 12 * 4


def test_no_memory_and_an_empty_one_search_nothing():
    assert workload_of(config_of("--gram.use_gram=false"), SHAPE, 8, variates=7,
                       bank_entries=MANY).search is None  # fmt: skip
    assert workload_of(config_of(), SHAPE, 8, variates=7).search is None


def test_a_small_bank_is_compared_whole():
    search = workload_of(config_of(), SHAPE, 8, variates=7, bank_entries=50_000).search
    assert search is not None
    assert search.search_flops == 2 * 50_000 * 256
    assert search.visited_bytes == 0
    assert search.sharing == "rank"
    assert search.queries == 4 * 7
    assert search.query_bytes == 16 + 4 * 256
    assert search.answer_bytes == 12 * 5


def test_of_a_large_one_lists_are_read():
    config = config_of()
    search = workload_of(config, SHAPE, 16, variates=7, bank_entries=MANY).search
    assert search is not None
    assert search.search_flops == 0
    choice = choose_index(config.bank, MANY, 256, on_gpu=True, ranks_per_node=8, num_nodes=2)
    assert search.sharing == choice.group == "node"
    assert choice.kind == "ivf_flat"
    assert search.visited_bytes == pytest.approx(VISITED_SHARE * MANY * 4 * 256, rel=0.01)
    lists = ceil(VISITED_SHARE * choice.nlist)
    assert search.query_bytes == 16 + 4 * 256 + 8 * lists


def test_codes_are_measured_again_by_encoding_their_windows():
    flat, coded = (
        workload_of(config_of(f"--bank.index={kind}"), SHAPE, 16, variates=7,
                    bank_entries=1_000_000).search
        for kind in ("ivf_flat", "ivf_sq8")
    )  # fmt: skip
    assert flat is not None
    assert coded is not None
    refine = BankConfig().refine
    assert coded.answer_bytes == refine * flat.answer_bytes
    assert coded.flops == pytest.approx(flat.flops * (1 + 5 * refine))
    assert 4 * coded.visited_bytes == pytest.approx(flat.visited_bytes)
