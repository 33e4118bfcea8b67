"""model/forecaster.py with TAPR and GRA-M: SPEC's shapes, the quiet start, gradients."""

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from model.backbone import Backbone
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.batch import ForecastInputs, ForecastOutput, RetrievedWindows
from model.config import BackboneConfig, GramConfig, ModelConfig, TaprConfig
from model.forecaster import Forecaster
from model.instance_norm import normalize
from model.losses import forecast_loss, retrieval_losses, total_loss, trend_losses
from tests.helpers.backbones import load_tiny

# 85 does not divide into patches of 8 every 4; 21 patches make two cells of the coarsest scale.
L, H, N, B, K, T = 85, 6, 3, 2, 4, 5
R = B * N
SMALL = ModelConfig(
    patch_len=8, stride=4, d_model=16, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0
)
TAPR = TaprConfig(trend_thresholds=[-0.5, -0.1, 0.1, 0.5])
GRAM = GramConfig(use_gram=True, d_repr=8)
SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
LEARNABLE = TaprConfig(trend_thresholds="learnable")


def make(
    tapr: TaprConfig | None = TAPR, gram: GramConfig | None = GRAM, **settings: object
) -> Forecaster:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **settings)  # type: ignore[arg-type]
    return Forecaster(config, L, H, load_tiny("gpt2"), tapr=tapr, gram=gram)


def inputs_of(context: Tensor | None = None) -> ForecastInputs:
    rng = torch.Generator().manual_seed(1)
    return ForecastInputs(
        context=torch.randn(B, L, N, generator=rng) if context is None else context,
        prompt_ids=torch.randint(300, (R, T), generator=rng),
        prompt_mask=torch.ones(R, T, dtype=torch.bool),
    )


def retrieve(found: int = K, k: int = K) -> RetrievedWindows:
    rng = torch.Generator().manual_seed(2)
    valid = (torch.arange(k) < found).expand(R, k)
    return RetrievedWindows(
        windows=torch.randn(R, k, L, generator=rng) * valid[..., None],
        futures=torch.randn(R, k, H, generator=rng) * valid[..., None],
        ids=torch.where(valid, torch.arange(k), -1),
        valid=valid,
    )


@pytest.mark.parametrize(
    "backbone",
    [
        transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
        transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    ],
    ids=["local attention", "hybrid"],
)
def test_padding_between_the_tokens_is_invisible_where_a_backbone_looks_not_all_the_way(
    backbone: transformers.PretrainedConfig,
):
    torch.manual_seed(0)
    language_model = transformers.AutoModel.from_config(backbone)
    config = dataclasses.replace(SMALL, anchor="none")
    model = Forecaster(config, L, H, Backbone(language_model), tapr=TAPR, gram=GRAM)
    wake(model)
    inputs, retrieved = inputs_of(), retrieve()
    assert inputs.prompt_ids is not None
    assert inputs.prompt_mask is not None
    padded = inputs._replace(
        prompt_ids=torch.nn.functional.pad(inputs.prompt_ids, (11, 0)),
        prompt_mask=torch.nn.functional.pad(inputs.prompt_mask, (11, 0)),
    )
    with torch.no_grad():
        wanted, found = (model(one, retrieved).forecast for one in (inputs, padded))
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def loss_of(
    output: ForecastOutput, target: Tensor, retrieved: RetrievedWindows, tapr: TaprConfig = TAPR
) -> Tensor:
    terms = forecast_loss(output.forecast, target)
    assert output.trend is not None
    assert output.labels is not None
    assert output.gate is not None
    assert output.match is not None
    terms |= trend_losses(output.trend, output.labels, tapr)
    terms |= retrieval_losses(output.gate, output.match, retrieved.valid, GRAM)
    return total_loss(terms, 0, 0)


def wake(model: Forecaster) -> None:
    """Open what starts closed: head, residual gates and fusion."""
    with torch.no_grad():
        nn.init.normal_(model.head.project.weight, std=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith(("residual_gate", "change_scale", "class_factors")):
                parameter.fill_(0.5)


def gpt2_of_full_width(folder: str, width: int = 768) -> str:
    config = transformers.GPT2Config(
        vocab_size=200, n_embd=width, n_layer=1, n_head=12, n_positions=256
    )
    transformers.logging.disable_progress_bar()
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def test_the_reference_shapes_of_etth1(tmp_path: Any):
    name = gpt2_of_full_width(str(tmp_path / "gpt2"))
    backbone = load_backbone(BackboneConfig(name=name, llm_layers=1), locate_backbone(name))
    config = ModelConfig(num_prototypes=50)
    tapr, gram = TaprConfig(), GramConfig(use_gram=True)
    model = Forecaster(config, 512, 96, backbone, tapr=tapr, gram=gram).eval()
    assert model.trend is not None
    assert model.memory is not None
    seen: dict[str, Any] = {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(
            lambda _module, args, out: seen.update({f"{name} in": args, name: out})
        )

    for name, module in {
        "patching": model.patching, "decomposition": model.trend.decomposition,
        "trend": model.trend, "gate": model.memory.gate, "memory": model.memory,
        "reprogramming": model.reprogramming, "backbone": model.backbone, "head": model.head,
    }.items():  # fmt: skip
        watch(name, module)
    tokens_read: list[Tensor] = []  # a causal model reads what stands before the patches first
    model.backbone.language_model.register_forward_pre_hook(
        lambda _module, _args, given: tokens_read.append(given["inputs_embeds"]), with_kwargs=True
    )
    prompt_tokens = 8
    inputs = ForecastInputs(
        context=torch.randn(32, 512, 7),
        prompt_ids=torch.zeros(224, prompt_tokens, dtype=torch.long),
        prompt_mask=torch.ones(224, prompt_tokens, dtype=torch.bool),
    )
    retrieved = RetrievedWindows(
        windows=torch.randn(224, 5, 512), futures=torch.randn(224, 5, 96),
        ids=torch.arange(5).expand(224, 5), valid=torch.ones(224, 5, dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        output = model(inputs, retrieved)

    shapes = {
        "patches": seen["patching"].shape,
        "fused scales": seen["decomposition"].fused.shape,
        "magnitude logits": output.trend.magnitude.shape,
        "trend token": seen["trend"][2].shape,
        "retrieved futures": seen["gate in"][1].shape,
        "gated patches": seen["gate"].features.shape,
        "retrieval tokens": seen["memory"][2].shape,
        "patch tokens": seen["reprogramming"].shape,
        "LLM input": torch.cat(tokens_read, dim=1).shape,
        "head": seen["head"].shape,
        "output": output.forecast.shape,
    }
    assert {name: tuple(shape) for name, shape in shapes.items()} == {
        "patches": (224, 63, 64),
        "fused scales": (224, 63, 64),
        "magnitude logits": (224, 4),
        "trend token": (224, 1, 768),
        "retrieved futures": (224, 5, 96),
        "gated patches": (224, 63, 64),
        "retrieval tokens": (224, 2, 768),
        "patch tokens": (224, 63, 768),
        "LLM input": (224, 1 + 2 + prompt_tokens + 63, 768),
        "head": (224, 96),
        "output": (32, 96, 7),
    }
    # The language model reads trend, retrieval, prompt and patches in this order.
    tokens = torch.cat(tokens_read, dim=1)
    assert torch.equal(tokens[:, :1], seen["trend"][2])
    assert torch.equal(tokens[:, 1:3], seen["memory"][2])
    assert torch.equal(tokens[:, -63:], seen["reprogramming"])


def features_before_reprogramming(model: Forecaster, *args: Any) -> Tensor:
    seen: list[Tensor] = []
    handle = model.reprogramming.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].detach().clone())
    )
    model(*args)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_gates_leave_the_patch_features_of_the_baseline_bit_for_bit(dtype: torch.dtype):
    plain, enhanced = make(None, None).to(dtype), make().to(dtype)
    wanted = features_before_reprogramming(plain, inputs_of())
    assert torch.equal(features_before_reprogramming(enhanced, inputs_of(), retrieve()), wanted)
    shared = dict(plain.named_parameters())
    assert all(torch.equal(p, shared[n]) for n, p in enhanced.named_parameters() if n in shared)
    wake(enhanced)
    assert not torch.equal(features_before_reprogramming(enhanced, inputs_of(), retrieve()), wanted)


@pytest.mark.parametrize("found", [0, 2, K])
@pytest.mark.parametrize("anchor", ["ridge", "ridge_retrieval"])
def test_the_forecast_starts_at_the_anchor_bit_for_bit(anchor: str, found: int):
    gram = dataclasses.replace(GRAM, retrieval_key="anchored")
    model, retrieved = make(gram=gram, anchor=anchor), retrieve(found)
    assert model.anchor is not None
    model.anchor.set_solution(torch.randn(model.anchor.weight.shape), "mean")
    context = inputs_of().context
    rows = context.transpose(1, 2).reshape(R, L)
    output = model.train()(inputs_of(), retrieved, torch.randn(B, H, N))
    retrieval = None
    if anchor == "ridge_retrieval":
        _, _, scale = normalize(context, "mean")
        mean = (output.neighbour_weights[..., None] * retrieved.futures).sum(dim=1)
        retrieval = rows[:, -1:] + scale.transpose(1, 2).reshape(R, 1) * mean
    wanted = model.anchor(rows, retrieval).view(B, N, H).transpose(1, 2)
    assert torch.equal(output.forecast, wanted)


@pytest.mark.parametrize("anchor", ["none", "ridge"])
@pytest.mark.parametrize("tapr", [TAPR, LEARNABLE], ids=["fixed", "learnable"])
def test_every_new_parameter_gets_a_gradient_within_five_steps(anchor: str, tapr: TaprConfig):
    model, retrieved = make(tapr, anchor=anchor).train(), retrieve()
    target = torch.randn(B, H, N)
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-3)
    silent = set(model.trained_parameters())
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model(inputs_of(), retrieved, target), target, retrieved, tapr).backward()
        silent -= {n for n, p in model.trained_parameters().items() if p.grad is not None
                   and p.grad.abs().sum() > 1e-12}  # fmt: skip
        optimizer.step()
    # A key's bias shifts all scores of a query alike, which softmax cannot see.
    assert silent <= {"reprogramming.key.bias"}
    assert all(p.grad is None for p in model.backbone.parameters())


def test_off_builds_no_parameters():
    names = {name for name, _ in make(None, None).named_parameters()}
    off = make(TaprConfig(use_tapr=False), GramConfig(use_gram=False))
    assert {name for name, _ in off.named_parameters()} == names
    assert off.state_dict().keys() == make(None, None).state_dict().keys()
    both = {name for name, _ in make().named_parameters()}
    assert {name.split(".")[0] for name in both - names} == {"trend", "memory"}


@pytest.mark.parametrize("d_repr", [64, 128, 256])
@pytest.mark.parametrize("top_k", [1, 3, 10])
@pytest.mark.parametrize("key", ["dual", "anchored"])
def test_any_number_of_neighbours_and_width_of_keys(top_k: int, d_repr: int, key: str):
    gram = GramConfig(use_gram=True, d_repr=d_repr, top_k=top_k, retrieval_key=key)
    model = make(gram=gram)
    wake(model)
    output = model(inputs_of(), retrieve(top_k, top_k))
    assert output.forecast.isfinite().all()
    assert output.neighbour_weights.shape == (R, top_k)


FUSIONS = list(product(["train_only", "always", "never"], ["multiplicative", "additive"]))


@pytest.mark.parametrize(("mode", "form"), FUSIONS)
@pytest.mark.parametrize("anchor", ["none", "ridge"])
def test_train_and_eval_differ_only_where_fusion_is_for_training(anchor: str, mode: str, form: str):
    model = make(dataclasses.replace(TAPR, trend_fusion=mode, fusion_form=form), anchor=anchor)
    wake(model)
    args = (inputs_of(), retrieve())
    trained, evaluated = model.train()(*args).forecast, model.eval()(*args).forecast
    assert torch.equal(trained, evaluated) == (mode != "train_only")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("found", [0, 1, K])
@pytest.mark.parametrize("anchor", ["none", "ridge_retrieval"])
def test_windows_and_neighbours_without_variance_are_finite_forward_and_backward(
    anchor: str, found: int, dtype: torch.dtype
):
    gram = dataclasses.replace(GRAM, retrieval_key="anchored" if anchor != "none" else "dual")
    model = make(gram=gram, anchor=anchor)
    wake(model)
    model.to(dtype).train()
    flat = retrieve(found)
    flat = flat._replace(windows=torch.full_like(flat.windows, 5.0) * flat.valid[..., None],
                         futures=torch.zeros_like(flat.futures))  # fmt: skip
    context, target = torch.full((B, L, N), 5.0), torch.full((B, H, N), 5.0)
    context[1, :, 2] = torch.randn(L)
    output = model(inputs_of(context), flat, target)
    loss = loss_of(output, target, flat)
    loss.backward()
    assert loss.isfinite()
    assert output.forecast.isfinite().all()
    assert (output.forecast[0] - 5).abs().max() < 0.2
    gradients = {n: p.grad for n, p in model.trained_parameters().items() if p.grad is not None}
    assert not [name for name, gradient in gradients.items() if not gradient.isfinite().all()]


def test_labels_are_made_where_a_target_is_given_and_do_not_change_the_forecast():
    model, target = make().eval(), torch.randn(B, H, N)
    wake(model)
    context = inputs_of().context
    bare, labelled = model(inputs_of(), retrieve()), model(inputs_of(), retrieve(), target)
    assert bare.labels is None
    assert torch.equal(bare.forecast, labelled.forecast)
    window, variate = 1, 2
    values = context[window, :, variate]
    scale = (values.var(correction=0) + 1e-5).sqrt()
    change = (target[window, :, variate].mean() - values[-1]) / scale
    torch.testing.assert_close(labelled.labels.change[window * N + variate], change)


def test_refuses_neighbours_missing_and_unasked_for():
    with pytest.raises(ValueError, match=r"retrieved is missing: pass neighbours exactly when"):
        make()(inputs_of())
    with pytest.raises(ValueError, match=r"retrieved is given: pass neighbours exactly when"):
        make(gram=None)(inputs_of(), retrieve())
