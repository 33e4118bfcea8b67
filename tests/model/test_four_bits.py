"""model/four_bits.py: block by block the same model as in one go, and no more than one whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from model import four_bits as four_bits_module
from model.backbone import Backbone
from model.backbone_files import locate_backbone
from model.backbone_loading import Partition, load_backbone
from model.config import BackboneConfig, LoraConfig
from tests.helpers.backbones import KINDS, Kind, all_true, tiny_backbone, tokens_of

WIDE, LAYERS = 64, 5


class Shares:
    """Shares nothing out, and remembers what it was to share."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def __call__(self, module: nn.Module) -> None:
        self.modules.append(module)

    def load(
        self, config: BackboneConfig, dtype: torch.dtype = torch.float32, folder: Path | None = None
    ) -> Backbone:
        files = locate_backbone(config.name if folder is None else str(folder))
        return load_backbone(config, files, dtype, zero3=Partition({}, self))


def four_bits(kind: Kind, **settings: int | LoraConfig) -> BackboneConfig:
    name = str(tiny_backbone(kind, LAYERS, WIDE))
    config = BackboneConfig(name=name, llm_layers=LAYERS - 1, load_in_4bit=True)
    return replace(config, **settings)  # type: ignore[arg-type]


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_block_by_block_it_is_the_same_model(kind: Kind, dtype: torch.dtype):
    config = four_bits(kind)
    whole = load_backbone(config, locate_backbone(config.name), dtype)
    shares = Shares()
    shared = shares.load(config, dtype)
    expected, found = whole.state_dict(), shared.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:  # packed numbers, some of which are no number as floats
        assert torch.equal(bytes_of(found[name]), bytes_of(expected[name])), name
    assert len(shares.modules) == LAYERS - 1
    tokens = tokens_of(width=WIDE)
    with torch.no_grad():
        assert torch.equal(shared(tokens, all_true(tokens)), whole(tokens, all_true(tokens)))
        if whole.can_read_ahead:  # the cache goes by the number of each block
            prefix = shared.read(tokens, all_true(tokens))
            again = whole.read(tokens, all_true(tokens))
            rest = tokens_of(length=3, width=WIDE)
            assert torch.equal(
                shared(rest, all_true(rest), prefix), whole(rest, all_true(rest), again)
            )
    unlike = {"_name_or_path"}
    assert {k: v for k, v in shared._config.to_dict().items() if k not in unlike} == {
        k: v for k, v in whole._config.to_dict().items() if k not in unlike
    }
    assert all(
        module.config is shared._config
        for module in shared.language_model.modules()
        if hasattr(module, "config")
    )


def test_each_block_is_shared_out_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch):
    """No block may be whole while another is: the one before it has been shared out."""
    sizes: list[int] = []
    shared_when_read: list[int] = []
    load = four_bits_module._BlockLoader.__call__

    def watched(loader: four_bits_module._BlockLoader, number: int) -> Any:
        shared_when_read.append(len(sizes))
        return load(loader, number)

    monkeypatch.setattr(four_bits_module._BlockLoader, "__call__", watched)

    def empty(module: nn.Module) -> None:
        sizes.append(sum(p.nbytes for p in module.parameters()))
        for parameter in module.parameters():
            parameter.data = parameter.data.new_empty(0)

    config = four_bits("llama")
    backbone = load_backbone(config, locate_backbone(config.name), zero3=Partition({}, empty))
    assert sum(p.nbytes for p in backbone.parameters()) == 0
    assert shared_when_read == list(range(LAYERS - 1))
    first, *others = sizes
    assert len(others) == LAYERS - 2
    assert len(set(others)) == 1
    words = backbone.vocab_size * backbone.d_llm * 4
    assert first - words < 2 * others[0]  # one block, the norms, and the words


def test_blocks_of_several_files_and_adapters(tmp_path: Path):
    config = four_bits("qwen2", lora=LoraConfig(r=2))
    AutoModel.from_pretrained(config.name).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = load_backbone(config, locate_backbone(config.name))
    shared = Shares().load(config, folder=tmp_path)
    tokens = tokens_of(width=WIDE)
    assert torch.equal(shared(tokens, all_true(tokens)), whole(tokens, all_true(tokens)))
    assert [n for n, p in shared.named_parameters() if p.requires_grad] == [
        n for n, p in whole.named_parameters() if p.requires_grad
    ]


def test_a_weight_that_the_files_lack_is_named(tmp_path: Path):
    config = four_bits("llama")
    model = AutoModel.from_pretrained(config.name)
    weights = model.state_dict()
    weights.pop("layers.2.mlp.up_proj.weight")
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lack \['layers\.2\.mlp\.up_proj\.weight'\]"):
        Shares().load(config, folder=tmp_path)


def test_a_block_that_is_another_when_it_stands_alone_is_refused(monkeypatch: pytest.MonkeyPatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    plain = LlamaDecoderLayer.__init__

    def by_number(self: nn.Module, config: object, layer_idx: int) -> None:
        plain(self, config, layer_idx)
        if layer_idx > 1:
            self.extra = nn.Identity()

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", by_number)
    with pytest.raises(ValueError, match=r"loaded alone is not the one.*zero_stage=2"):
        Shares().load(four_bits("llama"))
