"""model/backbone_loading.py: the cut, 4 bits, LoRA, fresh weights; and what is refused."""

import json
import math
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers
from torch import Tensor

from model.backbone import Backbone
from model.backbone_files import BackboneFiles, locate_backbone
from model.backbone_loading import build_weightless, load_backbone, load_tokenizer
from model.batch import ForecastInputs
from model.config import BackboneConfig, LoraConfig, ModelConfig
from model.embedded_backbone import EMBEDDED_NAME, embedded_folder
from model.forecaster import Forecaster
from tests.helpers.backbones import (
    DECODERS,
    KINDS,
    VOCAB_SIZE,
    Kind,
    all_true,
    load_tiny,
    tiny_backbone,
    tokens_of,
)
from tests.helpers.gguf_files import write_gguf


def whole_model(kind: Kind) -> transformers.PreTrainedModel:
    return transformers.AutoModel.from_pretrained(tiny_backbone(kind)).eval()


def final_norm(kind: Kind, model: transformers.PreTrainedModel, states: Tensor) -> Tensor:
    if kind == "bert":
        return states  # its blocks end in their own norm
    return (model.ln_f if kind == "gpt2" else model.norm)(states)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("llm_layers", [1, 3])
def test_the_cut_equals_the_hidden_states_of_the_whole_model(kind: Kind, llm_layers: int):
    embeddings = tokens_of()
    states = load_tiny(kind, llm_layers)(embeddings, all_true(embeddings))
    with torch.no_grad():
        model = whole_model(kind)
        hidden = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
        wanted = final_norm(kind, model, hidden[llm_layers])
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)
    if llm_layers < 4:  # the test could not tell the layers apart otherwise
        assert not torch.allclose(states, final_norm(kind, model, hidden[llm_layers + 1]), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_equals_a_model_built_with_fewer_layers(kind: Kind):
    short = transformers.AutoModel.from_pretrained(tiny_backbone(kind, num_layers=2))
    embeddings = tokens_of()
    backbone = load_tiny(kind, llm_layers=2, num_layers=2)
    with torch.no_grad():
        wanted = short.eval()(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(backbone(embeddings, all_true(embeddings)), wanted)


def test_random_weights_depend_on_the_seed_alone():
    name = str(tiny_backbone("llama"))
    files = locate_backbone(name)
    config = BackboneConfig(name=name, llm_layers=2, kind="random")

    def words(seed: int) -> Tensor:
        return load_backbone(config, files, seed=seed).word_embeddings

    state = torch.random.get_rng_state()
    first = words(1)
    torch.rand(1)
    assert torch.equal(words(1), first)
    assert not torch.equal(words(2), first)
    torch.random.set_rng_state(state)
    words(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, load_tiny("llama").word_embeddings)


def test_the_cut_of_a_gguf_file_equals_the_cut_of_its_folder(tmp_path: Path):
    path = write_gguf(tiny_backbone("llama"), tmp_path / "tiny.gguf")
    files = locate_backbone(str(path))
    backbone = load_backbone(BackboneConfig(name=str(path), llm_layers=2), files)
    embeddings = tokens_of()
    torch.testing.assert_close(
        backbone(embeddings, all_true(embeddings)),
        load_tiny("llama")(embeddings, all_true(embeddings)),
    )


def test_per_layer_lists_are_cut_too(tmp_path: Path):
    config = transformers.Qwen2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, use_sliding_window=True, sliding_window=4,
        max_window_layers=2,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    name = str(tmp_path)
    backbone = load_backbone(BackboneConfig(name=name, llm_layers=3), locate_backbone(name))
    assert backbone.language_model.config.layer_types == config.layer_types[:3]
    assert len(set(config.layer_types[:3])) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_pads_on_the_left_with_a_token_the_model_has(kind: Kind):
    tokenizer = load_tokenizer(locate_backbone(str(tiny_backbone(kind))))
    batch = tokenizer(["min", "the next steps of the series"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1
    assert tokenizer.pad_token_id < VOCAB_SIZE


def test_refuses_more_layers_than_there_are():
    name = str(tiny_backbone("gpt2"))
    with pytest.raises(ValueError, match=r"backbone\.llm_layers=5: .* has 4 layers; use at most 4"):
        load_backbone(BackboneConfig(name=name, llm_layers=5), locate_backbone(name))


def test_refuses_weight_files_that_lack_a_layer(tmp_path: Path):
    config = transformers.AutoConfig.from_pretrained(tiny_backbone("gpt2", num_layers=2))
    whole = transformers.AutoModel.from_pretrained(tiny_backbone("gpt2", num_layers=2))
    whole.save_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    name = str(tmp_path)
    with pytest.raises(ValueError, match=r"weight files lack \['h\.2\..*would be random"):
        load_backbone(BackboneConfig(name=name, llm_layers=3), locate_backbone(name))


def test_refuses_an_unknown_architecture(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "no_such_model", "num_hidden_layers": 2, "hidden_size": 8}'
    )
    name = str(tmp_path)
    config = BackboneConfig(name=name, llm_layers=2, kind="random")
    with pytest.raises(ValueError, match=r"backbone\.name=.*no_such_model.*choose another"):
        load_backbone(config, locate_backbone(name, kind="random"))


def test_refuses_a_backbone_that_cannot_hide_padding(tmp_path: Path):
    settings = {
        "model_type": "bart", "vocab_size": 20, "d_model": 8, "num_hidden_layers": 1,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    name = str(tmp_path)
    config = BackboneConfig(name=name, llm_layers=1, kind="random")
    with pytest.raises(ValueError, match=r"bart takes no position_ids.*another backbone"):
        load_backbone(config, locate_backbone(name, kind="random"))


def test_refuses_word_embeddings_of_another_width(tmp_path: Path):
    transformers.OPTConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
        word_embed_proj_dim=4,
    ).save_pretrained(tmp_path)  # fmt: skip
    name = str(tmp_path)
    config = BackboneConfig(name=name, llm_layers=1, kind="random")
    with pytest.raises(ValueError, match=r"embeddings are 4 wide .* states 8: choose"):
        load_backbone(config, locate_backbone(name, kind="random"))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_a_folder_without_a_tokenizer(kind: Kind, tmp_path: Path):
    files = locate_backbone(str(tiny_backbone(kind)))
    shutil.copy(files.folder / "config.json", tmp_path)
    bare = BackboneFiles(
        name="bare", kind="folder", folder=tmp_path, gguf_file=None, config=files.config,
        num_layers=4, d_llm=32, model_type=kind,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"backbone\.name=bare: .*no tokenizer.*add its tokenizer"):
        load_tokenizer(bare)


@pytest.fixture(scope="module")
def smollm2() -> Backbone:
    if not embedded_folder().is_dir():
        pytest.skip("the embedded backbone is not in the cache: run make setup")
    config = BackboneConfig(name=EMBEDDED_NAME, llm_layers=2)
    return load_backbone(config, locate_backbone(EMBEDDED_NAME))


def test_the_embedded_backbone_is_smollm2(smollm2: Backbone):
    files = locate_backbone(EMBEDDED_NAME)
    assert (files.num_layers, files.d_llm, files.model_type) == (30, 576, "llama")
    assert (smollm2.vocab_size, smollm2.d_llm) == (49152, 576)
    ids = torch.tensor([load_tokenizer(files)("The trend is up").input_ids])
    states = smollm2(smollm2.embed_tokens(ids), torch.ones_like(ids, dtype=torch.bool))
    assert states.isfinite().all()
    whole = transformers.AutoModel.from_pretrained(files.folder).eval()
    with torch.no_grad():
        hidden = whole(ids, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(states, whole.norm(hidden), atol=1e-3, rtol=1e-3)


WIDE = 64
"""4-bit numbers share a scale in blocks of 64, so its layers are wider than usual here."""


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_compute_with_the_rounded_weights(kind: Kind):
    whole = transformers.AutoModel.from_pretrained(tiny_backbone(kind, 2, WIDE)).eval()
    rounded = {}
    for name, module in whole.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or isinstance(module, torch.nn.Embedding):
            continue
        if "pooler" in name:
            continue
        is_conv = type(module).__name__ == "Conv1D"  # GPT-2 keeps its matrices transposed
        matrix = weight.data.T.contiguous() if is_conv else weight.data
        packed, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        back = bnb.dequantize_4bit(packed, state)
        weight.data = back.T.contiguous() if is_conv else back
        rounded[name] = back
    backbone = load_tiny(kind, 2, 2, WIDE, load_in_4bit=True)
    embeddings = tokens_of(width=WIDE)
    with torch.no_grad():
        wanted = whole(inputs_embeds=embeddings).last_hidden_state
    found = backbone(embeddings, all_true(embeddings))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    packed = {
        name.removeprefix("language_model.").removesuffix(".weight"): p
        for name, p in backbone.named_parameters()
        if hasattr(p, "quant_state")
    }
    assert packed.keys() == rounded.keys()
    for name, p in packed.items():
        assert torch.equal(bnb.dequantize_4bit(p.data, p.quant_state), rounded[name])
        assert p.nbytes * 2 == p.quant_state.shape.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_passes_through_four_bits_to_the_inputs_alone(kind: Kind, dtype: torch.dtype):
    backbone = load_tiny(kind, width=WIDE, dtype=dtype, load_in_4bit=True).train()
    embeddings = tokens_of(width=WIDE).requires_grad_()
    states = backbone(embeddings, all_true(embeddings))
    assert states.dtype == backbone.dtype == dtype
    (states[:, -1].float() * torch.arange(WIDE)).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 1e-3
    assert all(p.grad is None for p in backbone.parameters())


def fresh_in_4bit() -> Backbone:
    name = str(tiny_backbone("llama", 4, WIDE))
    config = BackboneConfig(name=name, llm_layers=2, kind="random", load_in_4bit=True)
    return load_backbone(config, locate_backbone(name))


def test_fresh_weights_and_gguf_files_are_kept_in_four_bits_too(tmp_path: Path):
    fresh = fresh_in_4bit()
    again = fresh_in_4bit()
    embeddings = tokens_of(width=WIDE)
    states = fresh(embeddings, all_true(embeddings))
    assert torch.equal(states, again(embeddings, all_true(embeddings)))
    path = write_gguf(tiny_backbone("llama", 4, WIDE), tmp_path / "tiny.gguf")
    config = BackboneConfig(name=str(path), llm_layers=2, load_in_4bit=True)
    torch.testing.assert_close(
        load_backbone(config, locate_backbone(str(path)))(embeddings, all_true(embeddings)),
        load_tiny("llama", width=WIDE, load_in_4bit=True)(embeddings, all_true(embeddings)),
    )


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path):
    folder = shutil.copytree(tiny_backbone("llama"), tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    config = BackboneConfig(name=str(folder), llm_layers=1)
    with pytest.raises(ValueError, match=r"quantised already: .*backbone.load_in_4bit=true"):
        load_backbone(config, locate_backbone(str(folder)))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("lora", [0, 4])
def test_recomputed_blocks_give_the_same_and_keep_less(kind: Kind, lora: int):
    settings = {"lora": LoraConfig(r=lora)}
    plain = load_tiny(kind, 3, **settings).train()
    lean = load_tiny(kind, 3, activation_checkpointing=True, **settings).train()
    results, kept = [], []
    for backbone in (plain, lean):
        embeddings = tokens_of(length=16).requires_grad_()
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, seen=seen: (seen.append(tensor.nbytes), tensor)[1], lambda tensor: tensor
        ):
            states = backbone(embeddings, all_true(embeddings))
        (states * torch.arange(states.shape[-1])).sum().backward()
        trained = [p.grad for p in backbone.parameters() if p.requires_grad]
        results.append((states, embeddings.grad, *trained))
        kept.append(sum(seen))
    torch.testing.assert_close(results[1], results[0])
    assert kept[1] < kept[0] / 3
    assert not lean.can_read_ahead


@pytest.fixture(scope="module")
def forecasts_of_smollm2() -> dict[str, Tensor]:
    """Forecasts of a daily rhythm with the real weights, in bf16 and in 4 bits."""
    if not embedded_folder().is_dir():
        pytest.skip("the embedded backbone is not in the cache: run make setup")
    found = {}
    for name, in_4bit in (("bf16", False), ("4-bit", True)):
        settings = BackboneConfig(name=EMBEDDED_NAME, llm_layers=6, load_in_4bit=in_4bit)
        backbone = load_backbone(settings, locate_backbone(EMBEDDED_NAME), torch.bfloat16)
        torch.manual_seed(0)
        config = ModelConfig(prompt="none", anchor="none", num_prototypes=100)
        model = Forecaster(config, 96, 24, backbone).eval()
        hours = torch.arange(96.0)
        phases = torch.arange(6.0)[:, None]
        context = 5 + torch.sin(hours / 24 * math.tau + phases) + 0.01 * hours
        inputs = ForecastInputs(context=context[:, :, None], prompt_ids=None, prompt_mask=None)
        with torch.no_grad():
            found[name] = model(inputs).forecast
    return found


def test_four_bits_forecast_within_two_percent_of_bf16(forecasts_of_smollm2: dict[str, Tensor]):
    wanted, found = forecasts_of_smollm2["bf16"], forecasts_of_smollm2["4-bit"]
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_the_real_weights_in_four_bits_train_their_pairs_alone_and_come_back(smollm2: Backbone):
    def make(seed: int) -> Forecaster:
        torch.manual_seed(seed)
        settings = BackboneConfig(
            name=EMBEDDED_NAME, llm_layers=2, load_in_4bit=True, lora=LoraConfig(r=4)
        )
        backbone = load_backbone(settings, locate_backbone(EMBEDDED_NAME), torch.bfloat16)
        return Forecaster(ModelConfig(prompt="none", num_prototypes=20), 96, 24, backbone)

    model = make(0)
    frozen = {
        name: p.detach().view(torch.uint8).clone()
        for name, p in model.backbone.named_parameters()
        if not p.requires_grad
    }
    inputs = ForecastInputs(context=torch.randn(2, 96, 3), prompt_ids=None, prompt_mask=None)
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.trained_parameters().items()}
    for _ in range(3):
        optimizer.zero_grad()
        (model.train()(inputs).forecast - 1).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in model.trained_parameters().items() if not torch.equal(p, before[n])}
    assert sum(".lora_" in name for name in moved) == 8  # two targets in each of two blocks
    for name, p in model.backbone.named_parameters():
        if name in frozen:
            assert torch.equal(p.detach().view(torch.uint8), frozen[name])
    other = make(1)
    other.load_trained_state_dict(model.trained_state_dict())
    assert torch.equal(other.eval()(inputs).forecast, model.eval()(inputs).forecast)
    embeddings = torch.randn(1, 4, 576, requires_grad=True)
    smollm2(embeddings, all_true(embeddings))[0, -1, :9].sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose folder brings code, and a user who says yes to everything."""
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_backbone("gpt2"), folder)
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Hostile: ...\n"
    (folder / "hostile.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("signal.alarm", lambda *_: 0)  # ends the wait for an answer
    return folder


def ask_for_code(file: Path, **changes: object) -> None:
    calls = {
        "AutoConfig": "hostile.Hostile",
        "AutoModel": "hostile.Hostile",
        "AutoTokenizer": ["hostile.Hostile", None],
    }
    content = json.loads(file.read_text()) | {"auto_map": calls} | changes
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("model_type", ["gpt2", "hostile"])
def test_code_in_the_folder_of_a_model_is_never_run(
    tmp_path: Path, hostile_folder: Path, model_type: str
):
    files = locate_backbone(str(hostile_folder))  # while it still looked harmless
    ask_for_code(hostile_folder / "config.json", model_type=model_type)
    with pytest.raises(ValueError, match="auto_map.*, which is never run"):
        locate_backbone(str(hostile_folder))
    try:
        load_backbone(BackboneConfig(name=str(hostile_folder), llm_layers=1), files)
    except ValueError as error:
        assert f"backbone.name={hostile_folder}" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tokenizer", ["PreTrainedTokenizerFast", "Hostile"])
def test_code_in_the_folder_of_a_tokenizer_is_never_run(
    tmp_path: Path, hostile_folder: Path, tokenizer: str
):
    ask_for_code(hostile_folder / "tokenizer_config.json", tokenizer_class=tokenizer)
    try:
        load_tokenizer(locate_backbone(str(hostile_folder)))
    except ValueError as error:
        assert f"backbone.name={hostile_folder}" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


def test_the_code_of_the_folder_would_run_if_it_were_trusted(tmp_path: Path, hostile_folder: Path):
    ask_for_code(hostile_folder / "config.json", model_type="hostile")
    with pytest.raises(Exception):  # noqa: B017, PT011 - it is no model, whatever comes of it
        transformers.AutoModel.from_pretrained(
            hostile_folder, trust_remote_code=True, local_files_only=True
        )
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": LoraConfig(r=2)}, {"kind": "transformer"}, {"activation_checkpointing": True}],
    ids=["plain", "lora", "substitute", "checkpointing"],
)
def test_a_backbone_without_weights_has_the_shapes_of_the_loaded_one(kind: Kind, settings: dict):
    config = BackboneConfig(name=str(tiny_backbone(kind)), llm_layers=3, **settings)
    files = locate_backbone(config.name)
    loaded = load_backbone(config, files, torch.bfloat16)
    weightless = build_weightless(config, files.config, torch.bfloat16)
    assert all(p.device.type == "meta" for p in weightless.parameters())

    def facts(backbone: Backbone) -> dict[str, tuple]:
        return {
            name: (tuple(p.shape), p.dtype, p.requires_grad)
            for name, p in backbone.named_parameters()
        }

    assert facts(weightless) == facts(loaded)
    for name in ("vocab_size", "d_llm", "can_read_ahead", "is_trained"):
        assert getattr(weightless, name) == getattr(loaded, name)
