import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_ours import cpu_attention
from dist_train.config import RunConfig, build_parser, parse_run_config
from dist_train.data.config import SourceConfig
from dist_train.flops import (
    COMMON_TOKENS,
    STATISTICS_TOKENS,
    MicroBatch,
    bank_entry_flops,
    expected_batch,
    micro_batch_flops,
    total_flops,
)
from dist_train.shapes import BackboneShape, published_shape, shape_of
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.batch import ForecastInputs, RetrievedWindows
from model.config import num_patches
from model.forecaster import Forecaster
from model.linear_anchor import LinearAnchor
from model.pattern_encoder import build_encoder
from tests.helpers.backbones import VOCAB_SIZE, Kind, tiny_backbone

WINDOWS, VARIATES, PROMPT, COMMON = 2, 3, 40, 24
# Large enough beside a backbone of width 64 for a wrong count of any part to be seen.
SMALL = ("--data.seq_len=160", "--data.pred_len=48", "--model.d_model=48", "--model.d_ff=32",
         "--model.n_heads=4", "--model.num_prototypes=70", "--model.dropout=0",
         "--gram.use_gram=true", "--gram.d_repr=32", "--gram.top_k=3", "--model.anchor=none",
         "--backbone.llm_layers=3")  # fmt: skip
BARE = ("--gram.use_gram=false", "--tapr.use_tapr=false")
BATCH = MicroBatch(windows=WINDOWS, variates=VARIATES, prompt_tokens=PROMPT, common_tokens=COMMON)


def config_of(*overrides: str) -> RunConfig:
    return parse_run_config(build_parser("test"), [*SMALL, *overrides])[0]


def setting(kind: Kind, *overrides: str) -> tuple[RunConfig, BackboneShape]:
    folder = tiny_backbone(kind, 4, 64)
    config = config_of(f"--backbone.name={folder}", *overrides)
    content = json.loads((folder / "config.json").read_text())
    return config, shape_of(content, config.backbone.llm_layers)


def counted_by_torch(config: RunConfig) -> float:
    """Forward and backward of the real model, as torch counts them."""
    files = locate_backbone(config.backbone.name)
    backbone = load_backbone(config.backbone, files, torch.float32)
    cached = config.model.token_order == "prefix_cached"
    common = torch.arange(COMMON) % VOCAB_SIZE
    torch.manual_seed(0)
    model = Forecaster(
        config.model, config.data.seq_len, config.data.pred_len, backbone,
        tapr=config.tapr, gram=config.gram, prompt_prefix=common,
    ).train()  # fmt: skip
    inputs, retrieved = batch_of(config, PROMPT - COMMON * cached)
    # Made once for a run: the basis of the words, and what all prompts begin with.
    model(inputs, retrieved)
    mapping = cpu_attention()
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        output = model(inputs, retrieved)
        loss = output.forecast.sum()
        if output.trend is not None:
            loss = loss + output.trend.direction.sum() + output.trend.magnitude.sum()
        loss.backward()
    return float(counter.get_total_flops())


def batch_of(
    config: RunConfig, prompt_tokens: int
) -> tuple[ForecastInputs, RetrievedWindows | None]:
    rows, k = BATCH.rows, config.gram.top_k
    prompt: dict[str, Any] = {"prompt_ids": None, "prompt_mask": None}
    if config.model.prompt != "none":
        shape = (rows, prompt_tokens)
        prompt = {
            "prompt_ids": torch.randint(0, VOCAB_SIZE, shape),
            "prompt_mask": torch.ones(shape, dtype=torch.bool),
        }
    context = torch.randn(WINDOWS, config.data.seq_len, VARIATES)
    inputs = ForecastInputs(context=context, **prompt)
    if not config.gram.use_gram:
        return inputs, None
    retrieved = RetrievedWindows(
        windows=torch.randn(rows, k, config.data.seq_len),
        futures=torch.randn(rows, k, config.data.pred_len),
        ids=torch.arange(rows * k).view(rows, k),
        valid=torch.ones(rows, k, dtype=torch.bool),
    )
    return inputs, retrieved


CASES = [
    pytest.param("gpt2", BARE, id="gpt2"),
    pytest.param("gpt2", (), id="gpt2, both modules"),
    pytest.param("llama", BARE, id="llama"),
    pytest.param("llama", (), id="llama, both modules"),
    pytest.param("qwen2", ("--model.anchor=ridge",), id="qwen2, ridge"),
    pytest.param("bert", (), id="bert reads all at once"),
    pytest.param("gpt2", ("--model.token_order=prefix_cached",), id="gpt2, prefix"),
    pytest.param("llama", ("--model.token_order=prefix_cached", *BARE), id="llama, prefix"),
    pytest.param("gpt2", ("--backbone.activation_checkpointing=true",), id="gpt2, again"),
    pytest.param("llama", ("--backbone.activation_checkpointing=true",), id="llama, again"),
    pytest.param("gpt2", ("--backbone.lora.r=8",), id="gpt2, lora"),
    pytest.param("llama", ("--backbone.lora.r=8",), id="llama, lora"),
    pytest.param(
        "llama",
        ("--backbone.lora.r=8", "--backbone.lora.target_modules=all-linear",
         "--model.token_order=prefix_cached"),
        id="llama, lora everywhere, prefix",
    ),
    pytest.param(
        "gpt2",
        ("--gram.retrieval_key=anchored", "--model.anchor=ridge_retrieval"),
        id="anchored key, both ridges",
    ),
    pytest.param("gpt2", ("--model.prototype_map=vocabulary", *BARE), id="vocabulary"),
    pytest.param(
        "gpt2",
        ("--model.anchor=ridge", "--model.anchor_random_features=32"),
        id="random features",
    ),
    pytest.param("gpt2", ("--model.patch_embedding=linear", "--model.prompt=none"), id="none"),
    pytest.param("gpt2", ("--backbone.kind=none",), id="no language model"),
    pytest.param("gpt2", ("--backbone.kind=attention",), id="attention in its place"),
    pytest.param("gpt2", ("--backbone.kind=transformer", *BARE), id="a block in its place"),
]  # fmt: skip
IN_MAKE_TEST = {"gpt2", "llama", "bert reads all at once", "gpt2, prefix", "random features"}
"""The others take as long, and run in make test-slow."""


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        case if case.id in IN_MAKE_TEST
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in CASES
    ],
)  # fmt: skip
def test_the_count_is_torchs_own(kind: Kind, overrides: tuple[str, ...]):
    config, shape = setting(kind, *overrides)
    batch = BATCH if config.model.prompt != "none" else replace(BATCH, prompt_tokens=0)
    ours = total_flops(micro_batch_flops(config, shape, batch))
    counted = counted_by_torch(config) - counted_too_much(config)
    assert ours == pytest.approx(counted, rel=0.015)


def counted_too_much(config: RunConfig) -> float:
    """Torch takes the gradient of a depthwise convolution's weights for that of a dense one."""
    if not config.tapr.use_tapr:
        return 0.0
    patches = num_patches(config.data.seq_len, config.model.patch_len, config.model.stride)
    cells = BATCH.rows * sum(-(-patches // 4**i) for i in range(config.tapr.n_scales))
    return 2 * 3 * cells * config.model.d_model * (config.model.d_model - 1)


@pytest.mark.parametrize("calendar", ["none", "day"])
@pytest.mark.parametrize("features", [0, 32])
@pytest.mark.parametrize("num_sources", [1, 3])
def test_the_anchor_is_counted_to_the_last_product(calendar: str, features: int, num_sources: int):
    config, shape = setting(
        "gpt2", *BARE, "--model.anchor=ridge", f"--model.anchor_calendar={calendar}",
        f"--model.anchor_random_features={features}",
    )  # fmt: skip
    if num_sources > 1:
        sources = [SourceConfig(name=f"s{number}") for number in range(num_sources)]
        config = replace(config, data=replace(config.data, dataset="vic_elec", sources=sources))
    length, steps = config.data.seq_len, config.data.pred_len
    extension = config.model.anchor_extension
    anchor = LinearAnchor(length, steps, extension=extension, num_sources=num_sources)
    rows, phase = torch.randn(BATCH.rows, length), torch.randn(WINDOWS, 4)
    with FlopCounterMode(display=False) as counter:
        anchor(rows, None, phase, torch.zeros(WINDOWS, dtype=torch.int64))
    counted = micro_batch_flops(config, shape, BATCH)["anchor"]
    assert (counted.forward, counted.backward) == (counter.get_total_flops(), 0)


def test_windows_of_the_bank_are_encoded_as_torch_counts_it():
    config = config_of()
    encoder = build_encoder(config.gram, config.data.seq_len)
    with FlopCounterMode(display=False, custom_mapping=cpu_attention()) as counter, torch.no_grad():
        encoder(torch.randn(10, config.data.seq_len))
    assert 10 * bank_entry_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.001)
    assert bank_entry_flops(config_of("--gram.retrieval_key=anchored")) == 0


def test_prompts_are_as_long_as_the_settings_lead_to_expect():
    def tokens(*overrides: str) -> tuple[int, int]:
        batch = expected_batch(config_of(*overrides), windows=2, variates=3)
        assert batch.rows == 6
        return batch.prompt_tokens, batch.common_tokens

    assert tokens() == (STATISTICS_TOKENS + COMMON_TOKENS, COMMON_TOKENS)
    assert tokens("--model.prompt=stats_only") == (STATISTICS_TOKENS, 0)
    assert tokens("--model.prompt=none") == (0, 0)
    assert tokens("--model.max_prompt_tokens=80") == (80, 80 - STATISTICS_TOKENS)


def test_a_step_of_twice_the_windows_is_twice_the_work_but_for_the_prototypes():
    config, shape = setting("llama")
    once = micro_batch_flops(config, shape, BATCH)
    twice = micro_batch_flops(config, shape, replace(BATCH, windows=2 * WINDOWS))
    for name in ("patching", "trend", "memory", "backbone", "head"):
        assert twice[name].total == pytest.approx(2 * once[name].total)
    assert twice["prototypes"] == once["prototypes"]


def test_what_is_not_built_is_nothing():
    config, shape = setting("gpt2", *BARE)
    parts = micro_batch_flops(config, shape, BATCH)
    assert {name for name, part in parts.items() if not part.total} == {
        "trend", "memory", "lora", "anchor",
    }  # fmt: skip


def test_the_frozen_part_has_no_gradients_of_weights():
    """Every matrix forward, and back once: not twice, as a trained one."""
    config, shape = setting("gpt2", "--backbone.llm_layers=4")
    part = micro_batch_flops(config, shape, BATCH)["backbone"]
    assert 0.9 < part.backward / part.forward < 1.6


def test_seventy_billion_weights_take_no_memory_to_count():
    shape = published_shape("meta-llama/Llama-3.1-70B", 80)
    batch = MicroBatch(windows=1, variates=7, prompt_tokens=114)
    config = config_of("--backbone.llm_layers=80", "--data.seq_len=512")
    part = micro_batch_flops(config, shape, batch)["backbone"]
    tokens = batch.rows * (1 + 2 + 114 + 63)
    # Two operations per weight forward, two back, and attention's few percent.
    weights = 80 * shape.matrix_weights_per_block
    assert part.total == pytest.approx(4 * tokens * weights, rel=0.03)
