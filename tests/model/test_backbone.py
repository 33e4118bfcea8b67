"""model/backbone.py: the cut equals Transformers' own, padding is invisible, all is frozen."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from model.backbone import Backbone, load_backbone, load_tokenizer
from model.backbone_files import BackboneFiles, locate_backbone
from model.config import BackboneConfig
from model.embedded_backbone import EMBEDDED_NAME, embedded_folder
from tests.helpers.backbones import DECODERS, KINDS, VOCAB_SIZE, Kind, load_tiny, tiny_backbone
from tests.helpers.gguf_files import write_gguf


def tokens_of(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(0))


def all_true(embeddings: Tensor) -> Tensor:
    return torch.ones(embeddings.shape[:2], dtype=torch.bool)


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


def test_gpt2_keeps_one_tensor_of_its_activation_for_the_backward_pass():
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    tokens = tokens_of().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        load_tiny("gpt2", llm_layers=1)(tokens, all_true(tokens))
    # Four times as wide as the tokens, as the activation alone is; shared weights are not counted.
    assert sum(tensor.shape == (2, 7, 128) for tensor in kept) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_equals_a_model_built_with_fewer_layers(kind: Kind):
    short = transformers.AutoModel.from_pretrained(tiny_backbone(kind, num_layers=2))
    embeddings = tokens_of()
    backbone = load_tiny(kind, llm_layers=2, num_layers=2)
    with torch.no_grad():
        wanted = short.eval()(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(backbone(embeddings, all_true(embeddings)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [0, 3])
@pytest.mark.parametrize("padding", [1, 20])
def test_padding_is_invisible(kind: Kind, where: int, padding: int):
    backbone, embeddings = load_tiny(kind), tokens_of()
    garbage = torch.full((2, padding, 32), 7.0)
    padded = torch.cat([embeddings[:, :where], garbage, embeddings[:, where:]], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[:, where : where + padding] = False

    states = backbone(padded, mask)

    assert states.isfinite().all()
    torch.testing.assert_close(
        states[mask].view(2, 7, 32),
        backbone(embeddings, all_true(embeddings)),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_do_not_look_ahead(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    changed = embeddings.clone()
    changed[:, 5:] = 0.0
    mask = all_true(embeddings)
    torch.testing.assert_close(backbone(embeddings, mask)[:, :5], backbone(changed, mask)[:, :5])


def test_an_encoder_looks_both_ways():
    backbone, embeddings = load_tiny("bert"), tokens_of()
    changed = embeddings.clone()
    changed[:, 6] = 0.0
    mask = all_true(embeddings)
    assert not torch.allclose(backbone(embeddings, mask)[:, 0], backbone(changed, mask)[:, 0])


def test_roberta_counts_positions_from_after_its_pad_token(tmp_path: Path):
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    name = str(tmp_path)
    backbone = load_backbone(BackboneConfig(name=name, llm_layers=2), locate_backbone(name))
    embeddings = tokens_of()
    with torch.no_grad():
        wanted = model(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(backbone(embeddings, all_true(embeddings)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_flows_to_the_inputs_and_to_no_weight(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of().requires_grad_()
    backbone(embeddings, all_true(embeddings)).square().sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad != 0).any(dim=-1).all()
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])  # published with dropout 0.1
def test_is_in_eval_mode_whatever_is_asked(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    still = backbone.eval()(embeddings, all_true(embeddings))
    torch.nn.Sequential(backbone).train()
    assert backbone.training
    assert torch.equal(backbone(embeddings, all_true(embeddings)), still)


def test_word_embeddings_are_the_rows_that_ids_look_up():
    backbone = load_tiny("gpt2")
    ids = torch.tensor([[3, 0, 5]])
    assert backbone.word_embeddings.shape == (VOCAB_SIZE, 32)
    assert not backbone.word_embeddings.requires_grad
    assert torch.equal(backbone.embed_tokens(ids), backbone.word_embeddings[ids])


def test_word_embeddings_of_a_partitioned_weight_come_from_its_owner():
    backbone = load_tiny("gpt2")
    wanted = backbone.word_embeddings
    backbone.language_model.wte.weight.ds_id = 0  # how ZeRO-3 marks a parameter
    assert torch.equal(backbone.word_embeddings, wanted)
    assert backbone.word_embeddings.data_ptr() != wanted.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_bfloat16_with_float32_rotary_frequencies(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    wanted = backbone(embeddings, all_true(embeddings))
    states = backbone.bfloat16()(embeddings, all_true(embeddings))
    assert states.dtype == backbone.dtype == torch.bfloat16
    assert (states.float() - wanted).abs().max() < 0.3
    frequencies = [b for name, b in backbone.named_buffers() if "inv_freq" in name]
    assert len(frequencies) >= (kind in ("qwen2", "llama", "mistral"))
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


def test_random_weights_depend_on_the_seed_alone():
    name = str(tiny_backbone("llama"))
    files = locate_backbone(name)
    config = BackboneConfig(name=name, llm_layers=2, weights="random")

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
    config = BackboneConfig(name=name, llm_layers=2, weights="random")
    with pytest.raises(ValueError, match=r"backbone\.name=.*no_such_model.*choose another"):
        load_backbone(config, locate_backbone(name, weights="random"))


def test_refuses_a_backbone_that_cannot_hide_padding(tmp_path: Path):
    settings = {
        "model_type": "bart", "vocab_size": 20, "d_model": 8, "num_hidden_layers": 1,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    name = str(tmp_path)
    config = BackboneConfig(name=name, llm_layers=1, weights="random")
    with pytest.raises(ValueError, match=r"bart takes no position_ids.*another backbone"):
        load_backbone(config, locate_backbone(name, weights="random"))


def test_refuses_word_embeddings_of_another_width(tmp_path: Path):
    transformers.OPTConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
        word_embed_proj_dim=4,
    ).save_pretrained(tmp_path)  # fmt: skip
    name = str(tmp_path)
    config = BackboneConfig(name=name, llm_layers=1, weights="random")
    with pytest.raises(ValueError, match=r"embeddings are 4 wide .* states 8: choose"):
        load_backbone(config, locate_backbone(name, weights="random"))


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


def test_refuses_more_tokens_than_positions():
    embeddings = torch.zeros(1, 513, 32)
    with pytest.raises(ValueError, match=r"513 tokens per row, .* 512 positions: lower"):
        load_tiny("gpt2", 1)(embeddings, all_true(embeddings))


def test_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"\(1, 5, 32\) and \(1, 4\): pass"):
        load_tiny("gpt2", 1)(torch.zeros(1, 5, 32), torch.ones(1, 4, dtype=torch.bool))


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
