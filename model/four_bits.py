"""Load frozen weights as 4-bit numbers (bitsandbytes NF4), whole or block by block.

Block by block is for ZeRO-3: each rank quantises one block, keeps its share and goes on, so that no
rank ever holds the whole. Transformers' own sharding at load knows no 4-bit weights.
"""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from model.backbone import block_list

_PLAIN = (bool, int, float, str, type(None))


def four_bit_settings(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained``: NF4 with double quantisation.

    The packed numbers lie in tensors of the computing type: DeepSpeed casts floating tensors to its
    own type and shards tensors of one type, so the bytes must look like that type.
    """
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from laying the numbers out anew on CPUs with AVX-512.

    It would at the first forward pass without gradient: in place, for inference in bf16 alone, and
    not undone by ZeRO-3.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def load_in_shares(
    weight_files: list[Path],
    cut: Any,
    dtype: torch.dtype,
    attention: str,
    share_out: Callable[[nn.Module], None],
) -> tuple[Any, list[str]]:
    """Load the blocks of ``cut`` one after the other, each shared out before the next; collective.

    Args:
        weight_files: The .safetensors files of the model; they may hold more.
        cut: Transformers configuration of the blocks that are kept.
        dtype: Of the arithmetic, and of what is not quantised.
        attention: As ``backbone.attention``.
        share_out: Leaves this rank its share of a module's parameters.

    Returns:
        The model, this rank's share of its parameters in it, and the names of weights that the
        files do not hold.

    Raises:
        ValueError: A block of the architecture is made otherwise when it stands alone.
    """
    with torch.device("meta"):
        plan = transformers.AutoModel.from_config(cut, attn_implementation=attention, dtype=dtype)
    name, places = block_list(plan, cut.num_hidden_layers)
    load = _BlockLoader(weight_files, name, cut, dtype, attention)
    model, lacking = load(0)
    _, blocks = block_list(model, 1)
    for number, place in enumerate(places):
        if number > 0:
            other, missing = load(number)
            blocks.append(block_list(other, 1)[1][0])
            lacking += missing
        _take_place(blocks[number], place, model.config)
        share_out(model if number == 0 else blocks[number])
    for key, value in listed_per_layer(cut, cut.num_hidden_layers).items():
        setattr(model.config, key, value)
    model.config.num_hidden_layers = cut.num_hidden_layers
    return model, lacking


def listed_per_layer(config: Any, num_layers: int) -> dict[str, list[Any]]:
    """What a configuration says for each of its layers, as layer_types."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if "layer" in key and isinstance(value, list) and len(value) == num_layers
    }


class _BlockLoader:
    """Loads a language model of one block, whichever of the file's."""

    def __init__(
        self, weight_files: list[Path], name: str, cut: Any, dtype: torch.dtype, attention: str
    ) -> None:
        self._files: list[Any] = [safe_open(path, "pt") for path in weight_files]
        self._number = re.compile(rf"(?:^|\.){re.escape(name)}\.(\d+)\.")
        self._name, self._cut, self._dtype, self._attention = name, cut, dtype, attention

    def __call__(self, number: int) -> tuple[Any, list[str]]:
        """Load it; the first with all that stands around the blocks, the others with nothing."""
        config = copy.deepcopy(self._cut)
        for key, value in listed_per_layer(config, config.num_hidden_layers).items():
            setattr(config, key, value[number : number + 1])
        config.num_hidden_layers = 1
        if number > 0:  # its word embeddings would be made for nothing
            config.vocab_size, config.pad_token_id = 1, None
        model, report = transformers.MODEL_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=self._weights(number),
            dtype=self._dtype,
            attn_implementation=self._attention,
            output_loading_info=True,
            **four_bit_settings(self._dtype),
        )
        keep_layout(model)
        own = f"{self._name}.0."
        missing = [key for key in report["missing_keys"] if number == 0 or key.startswith(own)]
        return model, sorted(key.replace(own, f"{self._name}.{number}.", 1) for key in missing)

    def _weights(self, number: int) -> Mapping[str, Tensor]:
        """The block's weights under the names of the first, and with the first all others."""
        found = {}
        for file in self._files:
            for key in file.keys():  # noqa: SIM118, it is no dictionary
                match = self._number.search(key)
                if match is None and number == 0:
                    found[key] = file.get_tensor(key)
                elif match is not None and int(match[1]) == number:
                    found[f"{key[: match.start(1)]}0{key[match.end(1) :]}"] = file.get_tensor(key)
        return found


def _take_place(block: nn.Module, place: nn.Module, config: Any) -> None:
    """Tell a block that was loaded alone what its place in the whole model says of it."""
    modules, expected = dict(block.named_modules()), dict(place.named_modules())
    if modules.keys() != expected.keys():
        raise ValueError(
            "backbone.load_in_4bit=true with deepspeed.zero_stage=3: a block of "
            f"{config.model_type} that is loaded alone is not the one of the whole model: use "
            "deepspeed.zero_stage=2, or backbone.load_in_4bit=false"
        )
    for name, module in modules.items():
        for key, value in vars(expected[name]).items():
            if isinstance(value, _PLAIN) and key != "training":
                setattr(module, key, value)
        if hasattr(module, "config"):
            module.config = config
