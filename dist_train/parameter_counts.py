"""How many numbers a run trains, and how many it keeps frozen, by part: exact, without a model.

Formulas over the widths; the tests build real forecasters and compare. Matrices (two axes or more,
which decay) and vectors (which do not) are counted apart: DeepSpeed pads and shares out each of the
two groups of its own. Free of torch.
"""

import math
from dataclasses import dataclass

from dist_train.config import RunConfig
from dist_train.shapes import BackboneShape
from model.config import LANGUAGE_MODELS, GramConfig, LoraConfig, TaprConfig, num_patches

# Of model/pattern_encoder.py, model/trend_head.py and model/backbone_substitutes.py, which need
# torch; the tests compare.
SHAPE_PATCH_LEN = 16
SHAPE_BLOCKS = 2
STATISTICS = 7
DIRECTIONS = 3
MAGNITUDES = 4
MLP_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Count:
    """Numbers in the parameters of a part."""

    matrices: int = 0
    """In parameters of two axes or more."""

    vectors: int = 0
    """In parameters of one axis."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.vectors

    def __add__(self, other: "Count") -> "Count":
        """Both parts together."""
        return Count(matrices=self.matrices + other.matrices, vectors=self.vectors + other.vectors)

    def __mul__(self, times: int) -> "Count":
        """The part several times over."""
        return Count(matrices=times * self.matrices, vectors=times * self.vectors)


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """What a run trains, and what it keeps frozen."""

    trained: dict[str, Count]
    """By part of the forecaster; parts that are not built are not there."""

    frozen_matrices: int
    """Numbers in the matrices of the backbone's blocks: what 4-bit quantisation packs."""

    frozen_rest: int
    """Numbers in its embeddings, norms and biases."""

    largest_trained: int
    """Numbers in the largest trained parameter."""

    @property
    def trained_total(self) -> int:
        """Numbers that are trained."""
        return sum(part.total for part in self.trained.values())

    @property
    def trained_groups(self) -> tuple[int, ...]:
        """Numbers in each of the optimizer's groups, with decay and without; no empty one."""
        whole = sum(self.trained.values(), Count())
        return tuple(size for size in (whole.matrices, whole.vectors) if size)

    @property
    def frozen_total(self) -> int:
        """Numbers that are not trained."""
        return self.frozen_matrices + self.frozen_rest


def count_parameters(config: RunConfig, shape: BackboneShape) -> ParameterCounts:
    """Count the parameters of a run.

    Args:
        config: The run; ``gram.use_gram=auto`` counts as built, as nobody knows before the data.
        shape: Its backbone.

    Raises:
        ValueError: ``lora.target_modules`` names no layer of the backbone.
    """
    model, width = config.model, shape.d_llm
    patches = num_patches(config.data.seq_len, model.patch_len, model.stride)
    kernel = 3 if model.patch_embedding == "conv" else 1
    keys = model.n_heads * model.d_ff
    words = width if model.prototype_map == "factored" else shape.vocab
    trained = {
        "patch embedding": Count(matrices=model.d_model * model.patch_len * kernel),
        "text prototypes": _linear(words, model.num_prototypes),
        "reprogramming": _linear(model.d_model, keys) + _linear(width, keys) * 2
        + _linear(keys, width),
        "forecast head": _linear(patches * model.d_ff, config.data.pred_len),
    }  # fmt: skip
    if config.tapr.use_tapr:
        trained["trend router"] = _trend_router(config.tapr, model.d_model, width)
    if config.gram.use_gram is not False:
        trained["memory"] = _memory(config.gram, config, width)
    is_language_model = config.backbone.kind in LANGUAGE_MODELS
    if is_language_model and config.backbone.lora.r > 0:
        trained["LoRA"] = _lora(config.backbone.lora, shape)
    if config.backbone.kind in ("attention", "transformer"):
        trained["substitute"] = _substitute(config.backbone.kind, width)
    blocks = shape.num_layers * shape.matrix_weights_per_block if is_language_model else 0
    frozen = shape.total_weights if is_language_model else shape.word_weights
    largest = max(
        words * model.num_prototypes,
        width * keys,
        patches * model.d_ff * config.data.pred_len,
        MLP_FACTOR * width * width if config.backbone.kind == "transformer" else 0,
    )
    return ParameterCounts(
        trained=trained,
        frozen_matrices=blocks,
        frozen_rest=frozen - blocks,
        largest_trained=largest,
    )


def linear_layers(shape: BackboneShape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every matrix of a block, by its name in Transformers' model."""
    width, inner = shape.d_llm, shape.d_intermediate
    if shape.model_type == "gpt2":
        return {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
    if shape.model_type == "bert":
        return {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (width, inner),
            "output.dense": (inner, width),
        }
    return {
        "self_attn.q_proj": (width, shape.d_query),
        "self_attn.k_proj": (width, shape.d_key_value),
        "self_attn.v_proj": (width, shape.d_key_value),
        "self_attn.o_proj": (shape.d_query, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }


# What peft takes for target_modules=auto.
_AUTO_TARGETS = {"gpt2": ("c_attn",), "bert": ("query", "value")}
_AUTO_DECODER = ("q_proj", "v_proj")


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> Count:
    return Count(matrices=inputs * outputs, vectors=outputs if bias else 0)


def _lora(lora: LoraConfig, shape: BackboneShape) -> Count:
    layers = linear_layers(shape)
    targets: list[str] | tuple[str, ...]
    if lora.target_modules == "all-linear":
        targets = list(layers)
    elif lora.target_modules == "auto":
        targets = _AUTO_TARGETS.get(shape.model_type, _AUTO_DECODER)
    else:
        targets = lora.target_modules
    chosen = [
        size
        for name, size in layers.items()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not chosen:
        raise ValueError(
            f"backbone.lora.target_modules={lora.target_modules}: {shape.name} has no such layer: "
            f"name one of {', '.join(layers)}, or use all-linear."
        )
    return Count(
        matrices=shape.num_layers * lora.r * sum(inward + outward for inward, outward in chosen)
    )


def _substitute(kind: str, width: int) -> Count:
    norm = Count(vectors=2 * width)
    attention = norm + _linear(width, 3 * width) + _linear(width, width)
    if kind == "attention":
        return attention
    inner = MLP_FACTOR * width
    return attention + norm + _linear(width, inner) + _linear(inner, width)


def _trend_router(tapr: TaprConfig, width: int, d_llm: int) -> Count:
    depthwise, pointwise = _linear(3, width), _linear(width, width)
    scale = depthwise + pointwise + _linear(2 * width, width)
    descend = _linear(width, width) * 2 + _linear(width, width, bias=False)
    decomposition = (
        scale * tapr.n_scales + descend * (tapr.n_scales - 1)
        + Count(vectors=tapr.n_scales + 1)  # weights of the scales, and the residual gate
    )  # fmt: skip
    head = (
        _linear(2 * width, width)
        + _linear(width, DIRECTIONS)
        + _linear(width + DIRECTIONS, MAGNITUDES)
        + Count(matrices=MAGNITUDES * width)
        + _linear(width, d_llm)
    )
    if tapr.builds_change:
        head += _linear(width + MAGNITUDES, width) + _linear(width, 1)
    thresholds = Count(vectors=4 if tapr.trend_thresholds == "learnable" else 0)
    return decomposition + head + _fusion(tapr) + thresholds


def _fusion(tapr: TaprConfig) -> Count:
    if tapr.trend_fusion == "never":
        return Count()
    gate = _linear(MAGNITUDES, 1)
    if tapr.fusion_form == "additive" and tapr.builds_change:
        return gate + Count(vectors=1)
    return gate + Count(vectors=MAGNITUDES if tapr.fusion_factors == "learned" else 0)


def _memory(gram: GramConfig, config: RunConfig, d_llm: int) -> Count:
    width, pred_len = config.model.d_model, config.data.pred_len
    square = _linear(width, width)
    gate = (
        square
        + _linear(pred_len, width) + square
        + _linear(3 * width, width) + _linear(width, 1)
        + _linear(2 * width + 1, width) + _linear(width, 1)
        + square * 2 + _linear(width, width, bias=False)
        + Count(vectors=1)
    )  # fmt: skip
    tokens = _linear(width, d_llm) + _linear(1, d_llm)
    if gram.retrieval_key == "anchored":
        return gate + tokens
    return gate + tokens + _dual_encoder(gram.d_repr, config.data.seq_len)


def _dual_encoder(width: int, seq_len: int) -> Count:
    norm, square = Count(vectors=2 * width), _linear(width, width)
    block = (
        norm * 2 + square * 3 + _linear(width, width, bias=False)
        + _linear(width, 2 * width) + _linear(2 * width, width)
    )  # fmt: skip
    shape = (
        _linear(SHAPE_PATCH_LEN, width)
        + Count(vectors=width)
        + Count(matrices=math.ceil(seq_len / SHAPE_PATCH_LEN) * width)
        + block * SHAPE_BLOCKS
    )
    return shape + _linear(STATISTICS, width) + square + Count(vectors=1)
