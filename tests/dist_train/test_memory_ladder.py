"""dist_train/memory_ladder.py: every rung is a configuration, and the ladder has an end."""

from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import memory_ladder
from dist_train.config import RunConfig, check_batch_size, config_to_yaml, load_run_config
from dist_train.memory_account import PHASES
from dist_train.memory_ladder import Rung, next_rung, rungs, same_numbers
from memory_index.config import BankConfig
from model.config import BackboneConfig, GramConfig, ModelConfig, TaprConfig

ORDER = [
    "train.micro_batch_size", "train.eval_batch_size", "data.seq_len", "backbone.llm_layers",
    "model.d_ff", "model.d_model", "tapr.n_scales", "gram.top_k", "gram.use_gram",
    "backbone.load_in_4bit",
]  # fmt: skip


def go_down(
    config: RunConfig, phase: str | None, folder: Path, ranks: int = 1
) -> tuple[list[Rung], RunConfig]:
    """Take rung after rung, each as a user would: as options beside the file of the run."""
    taken: list[Rung] = []
    path = folder / "run.yaml"
    while (rung := next_rung(config, phase, ranks)) is not None:
        taken.append(rung)
        assert len(taken) < 100
        path.write_text(config_to_yaml(config))
        lower = load_run_config(path, rung.options.split())
        assert lower != config
        check_batch_size(lower.train, ranks)
        config = lower
    return taken, config


@pytest.mark.parametrize("phase", [*PHASES, None])
def test_all_rungs_begin_with_the_next_one(phase: str | None, tmp_path: Path):
    config, path = RunConfig(), tmp_path / "run.yaml"
    path.write_text(config_to_yaml(config))
    found = list(rungs(config, phase))
    assert next_rung(config, phase) == (found[0] if found else None)
    keys = [next(iter(rung.settings)) for rung in found]
    assert len(set(keys)) == len(keys)
    for rung in found:  # changed in place as by the options of a command line
        lower = load_run_config(path, rung.options.split())
        assert memory_ladder.go_down(config, rung) == lower


@pytest.mark.parametrize("phase", [*PHASES, None])
def test_every_rung_is_a_valid_configuration_down_to_the_end(phase: str | None, tmp_path: Path):
    taken, _ = go_down(RunConfig(), phase, tmp_path)
    assert (not taken) == (phase == "data")
    keys = [next(iter(rung.settings)) for rung in taken]
    places = [ORDER.index(key) for key in keys if not key.startswith("bank.")]
    assert places == sorted(places)


def test_the_whole_ladder_of_a_training_step(tmp_path: Path):
    config = RunConfig()
    taken, last = go_down(config, "forward", tmp_path, ranks=4)
    assert [rung.options for rung in taken] == [
        "--train.micro_batch_size 4",
        "--train.micro_batch_size 2",
        "--train.micro_batch_size 1",
        "--data.seq_len 256",
        "--data.seq_len 128",
        "--data.seq_len 64",
        "--data.seq_len 40",
        "--backbone.llm_layers 6",
        "--backbone.llm_layers 3",
        "--backbone.llm_layers 1",
        "--model.d_ff 64",
        "--model.d_ff 32",
        "--model.d_ff 16",
        "--model.d_ff 8",
        "--model.d_model 32",
        "--model.d_model 16",
        "--model.d_model 8",
        "--tapr.n_scales 2",
        "--gram.top_k 2",
        "--gram.top_k 1",
        "--gram.use_gram false",
        "--backbone.load_in_4bit true",
    ]
    assert last.train.batch_size == config.train.batch_size
    assert taken[0].effect == "the batch stays 32, in 2 passes of each rank"


def test_the_ridge_gives_up_what_takes_most_first(tmp_path: Path):
    model = ModelConfig(anchor_random_features=300, anchor_weights="individual")
    config = RunConfig(model=model, gram=GramConfig(use_gram=False))
    taken, last = go_down(config, "ridge", tmp_path)
    assert [rung.options for rung in taken[:4]] == [
        "--model.anchor_random_features 150",
        "--model.anchor_random_features 0",
        "--model.anchor_weights shared",
        "--data.seq_len 256",
    ]
    assert last.model.anchor_options == {}


def test_the_micro_batch_divides_what_one_rank_has(tmp_path: Path):
    config = replace(RunConfig(), train=replace(RunConfig().train, batch_size=90))
    taken, _ = go_down(config, "backward", tmp_path, ranks=2)
    sizes = [rung.settings.get("train.micro_batch_size") for rung in taken]
    assert sizes[:5] == [15, 5, 1, None, None]


def test_evaluation_lowers_its_own_batch(tmp_path: Path):
    taken, last = go_down(RunConfig(), "evaluation", tmp_path)
    assert taken[0].options == "--train.eval_batch_size 16"
    assert taken[5].options == "--data.seq_len 256"
    assert last.train.micro_batch_size is None


def test_what_is_not_there_is_no_rung(tmp_path: Path):
    config = RunConfig(
        backbone=BackboneConfig(kind="none"),
        tapr=TaprConfig(use_tapr=False),
        gram=GramConfig(use_gram=False),
    )
    taken, _ = go_down(config, "forward", tmp_path)
    groups = {key.split(".")[0] for rung in taken for key in rung.settings}
    assert groups == {"train", "data", "model"}
    assert next_rung(config, "bank") is None
    assert next_rung(config, "backbone") is None


def test_without_memory_the_anchor_that_reads_it_goes_too(tmp_path: Path):
    config = RunConfig(
        model=ModelConfig(anchor="ridge_retrieval"),
        gram=GramConfig(use_gram=True, retrieval_key="anchored"),
    )
    taken, last = go_down(config, "bank", tmp_path)
    assert taken[-1].options == "--gram.use_gram false --model.anchor ridge"
    assert last.model.anchor == "ridge"
    # In place too, where one of the two without the other would be refused.
    without = replace(config.gram, use_gram=False), replace(config.model, anchor="ridge")
    lower = memory_ladder.go_down(config, taken[-1])
    assert lower == replace(config, gram=without[0], model=without[1])


@pytest.mark.parametrize(
    ("bank", "first"),
    [
        (BankConfig(), "--bank.bank_stride 2"),
        (BankConfig(num_samples=5000, max_memory_size=10000), "--bank.max_memory_size 2500"),
        (BankConfig(max_memory_size=1500), "--bank.max_memory_size 1000"),
        (BankConfig(max_memory_size=1000), "--gram.use_gram false"),
        (BankConfig(bank_stride=64), "--gram.use_gram false"),
    ],
)
def test_a_bank_loses_entries_before_it_goes(bank: BankConfig, first: str):
    rung = next_rung(RunConfig(bank=bank), "bank")
    assert rung is not None
    assert rung.options == first


def options(config: RunConfig, phase: str | None, ranks: int, *, on_gpu: bool) -> list[str]:
    return [rung.options for rung in same_numbers(config, phase, ranks, on_gpu=on_gpu)]


def test_what_leaves_the_model_as_it_is():
    config = RunConfig()
    recompute = "--backbone.activation_checkpointing true"
    assert options(config, "forward", 1, on_gpu=True) == [recompute]
    assert options(config, "backward", 4, on_gpu=True) == [recompute]
    assert options(config, "backbone", 1, on_gpu=True) == []
    assert options(config, "backbone", 2, on_gpu=True) == ["--deepspeed.zero_stage 3"]
    assert options(config, "optimizer", 1, on_gpu=True) == ["--deepspeed.offload optimizer"]
    assert options(config, "optimizer", 1, on_gpu=False) == []
    assert options(config, "loading", 1, on_gpu=False) == ["--data.num_workers 0"]
    assert options(config, "bank", 2, on_gpu=True) == [
        "--bank.device cpu",
        "--bank.shard_group world",
    ]
    without_zero = replace(config, deepspeed=replace(config.deepspeed, zero_stage=0))
    assert options(without_zero, "optimizer", 2, on_gpu=True) == ["--deepspeed.zero_stage 2"]


def test_what_cannot_be_had_is_not_offered():
    cached = RunConfig(model=ModelConfig(token_order="prefix_cached"))
    assert options(cached, "forward", 1, on_gpu=True) == []
    recomputed = RunConfig(backbone=BackboneConfig(activation_checkpointing=True))
    assert options(recomputed, "forward", 1, on_gpu=True) == []


@pytest.mark.parametrize("phase", [*PHASES, None])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_of_them_is_a_valid_configuration(phase: str | None, ranks: int, tmp_path: Path):
    path = tmp_path / "run.yaml"
    for stage in (0, 1, 2, 3):
        config = replace(RunConfig(), deepspeed=replace(RunConfig().deepspeed, zero_stage=stage))
        path.write_text(config_to_yaml(config))
        for rung in same_numbers(config, phase, ranks, on_gpu=True):
            assert load_run_config(path, rung.options.split()) != config
