"""Floating-point operations of a training step, from the configuration alone; free of torch.

What is counted are the products: a product of an (m, k) and a (k, n) matrix is 2 m k n, attention
is its two products, its gradient five (the scores are made again, as fused kernels do).
Element-wise work, norms and look-ups are left out; `torch.utils.flop_counter` counts so too, and
the tests compare with it. What is frozen has a gradient to its inputs and none to its weights.

Names of sizes (this file), as in the model's:
    R  rows, windows * variates     E  width of the language model     T  tokens of a row
    P  patches                      D  d_model                         K  top_k
    S  num_prototypes               G  n_heads, W  d_ff                Z  d_repr     H  pred_len
"""

from dataclasses import dataclass

from dist_train.config import RunConfig
from dist_train.parameter_counts import (
    DIRECTIONS,
    MAGNITUDES,
    MLP_FACTOR,
    SHAPE_BLOCKS,
    SHAPE_PATCH_LEN,
    STATISTICS,
    count_parameters,
    linear_layers,
)
from dist_train.shapes import BackboneShape
from model.config import (
    FEATURE_HARMONICS,
    LANGUAGE_MODELS,
    num_calendar_scales,
    num_patches,
)

# Products in the gradient of fused attention, over those of its forward pass: 5 / 2.
ATTENTION_BACKWARD = 2.5
ENCODERS = ("bert",)
"""Architectures whose tokens see those after them: no prompt can be read ahead."""
FUSED_QKV = ("gpt2",)
"""Architectures with one matrix for queries, keys and values."""

STATISTICS_TOKENS, COMMON_TOKENS = 67, 47
"""Tokens of a prompt: statistics of the longest of 112 rows, and what all rows begin with.

Counted with SmolLM2's tokenizer on random walks of 512 steps and the description of an ETT set.
"""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass of one rank reads."""

    windows: int
    variates: int

    prompt_tokens: int
    """Tokens of the longest prompt, those that all rows share included."""

    common_tokens: int = 0
    """Those of them that begin every prompt: ``prefix_cached`` reads them once for the run."""

    @property
    def rows(self) -> int:
        """Rows, one per window and variate."""
        return self.windows * self.variates


@dataclass(frozen=True)
class Flops:
    """Operations of a part of the model."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times)

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def expected_batch(config: RunConfig, *, windows: int, variates: int) -> MicroBatch:
    """A micro-batch with prompts of the length that the configuration leads to expect.

    See :data:`STATISTICS_TOKENS`; ``model.max_prompt_tokens`` bounds the whole.
    """
    statistics, common = STATISTICS_TOKENS, COMMON_TOKENS
    common = max(0, min(common, config.model.max_prompt_tokens - statistics))
    tokens = {"full": statistics + common, "stats_only": statistics, "none": 0}
    return MicroBatch(
        windows=windows,
        variates=variates,
        prompt_tokens=tokens[config.model.prompt],
        common_tokens=common if config.model.prompt == "full" else 0,
    )


def micro_batch_flops(
    config: RunConfig, shape: BackboneShape, batch: MicroBatch
) -> dict[str, Flops]:
    """Count forward and backward of one micro-batch of one rank, by part of the model.

    Args:
        config: The run; ``gram.use_gram`` of ``auto`` counts as true, which is the dearer case.
        shape: The language model.
        batch: What the rank reads.

    Returns:
        ``patching``, ``trend``, ``memory``, ``prototypes``, ``reprogramming``, ``backbone``,
        ``lora``, ``head`` and ``anchor``; a part that the run does not build is nothing.
    """
    patches = num_patches(config.data.seq_len, config.model.patch_len, config.model.stride)
    counter = _Counter(config, shape, batch, patches)
    backbone, lora = counter.backbone()
    return {
        "patching": counter.patching(),
        "trend": counter.trend() if config.tapr.use_tapr else Flops(),
        "memory": counter.memory() if config.gram.use_gram else Flops(),
        "prototypes": counter.prototypes(),
        "reprogramming": counter.reprogramming(),
        "backbone": backbone,
        "lora": lora,
        "head": counter.head(),
        "anchor": counter.anchor(),
    }


def total_flops(parts: dict[str, Flops]) -> float:
    """Operations of all parts, forward and backward."""
    return sum(part.total for part in parts.values())


def bank_entry_flops(config: RunConfig) -> float:
    """Operations to encode one entry of the memory bank; an anchored key takes next to none."""
    if config.gram.retrieval_key == "anchored":
        return 0.0
    return _encode_windows(config, 1).forward


class _Counter:
    """Counts of one configuration; a method per part."""

    def __init__(
        self, config: RunConfig, shape: BackboneShape, batch: MicroBatch, patches: int
    ) -> None:
        self.config, self.shape, self.batch, self.patches = config, shape, batch, patches
        self.rows = batch.rows
        self.cells = batch.rows * patches

    def patching(self) -> Flops:
        model = self.config.model
        width = 3 if model.patch_embedding == "conv" else 1
        return _linear(self.cells, width * model.patch_len, model.d_model, into_inputs=False)

    def trend(self) -> Flops:
        width, rows = self.config.model.d_model, self.rows
        counted = Flops()
        for number in range(self.config.tapr.n_scales):
            cells = rows * -(-self.patches // min(4**number, self.patches))
            counted += _linear(cells, 3, width) + _linear(cells, 3 * width, width)
        reads = self.config.tapr.n_scales - 1
        counted += _linear(self.cells, 3 * width, width) * reads
        counted += _attention(rows, self.patches, self.patches, width) * reads
        counted += _linear(rows, 2 * width, width) + _linear(rows, width, DIRECTIONS)
        counted += _linear(rows, width + DIRECTIONS, MAGNITUDES)
        counted += _linear(rows, MAGNITUDES, width) + _linear(rows, width, self.shape.d_llm)
        if self.config.tapr.builds_change:
            counted += _linear(rows, width + MAGNITUDES, width) + _linear(rows, width, 1)
        return counted

    def memory(self) -> Flops:
        width, rows, k = self.config.model.d_model, self.rows, self.config.gram.top_k
        counted = Flops()
        if self.config.gram.retrieval_key == "dual":
            counted += _encode_windows(self.config, rows)
            counted += Flops(_encode_windows(self.config, rows * k).forward)
        futures = rows * k
        counted += _linear(self.cells, width, width) * 2  # encode_current and query
        counted += _linear(futures, self.config.data.pred_len, width, into_inputs=False)
        counted += _linear(futures, width, width) * 3  # the rest of embed_future, key and value
        counted += _linear(futures, 3 * width, width) + _linear(futures, width, 1)
        counted += _linear(rows, 2 * width + 1, width) + _linear(rows, width, 1)
        counted += _linear(self.cells, k, width) * 2  # scores and reading: products, not fused
        return counted + _linear(rows, width + 1, self.shape.d_llm)

    def prototypes(self) -> Flops:
        factored = self.config.model.prototype_map == "factored"
        words = self.shape.d_llm if factored else self.shape.vocab
        return _linear(self.shape.d_llm, words, self._prototypes, into_inputs=False)

    def reprogramming(self) -> Flops:
        model = self.config.model
        inner = model.n_heads * model.d_ff
        return (
            _linear(self.cells, model.d_model, inner)
            + _linear(self._prototypes, self.shape.d_llm, inner) * 2
            + _attention(1, self.cells, self._prototypes, inner)
            + _linear(self.cells, inner, self.shape.d_llm)
        )

    def head(self) -> Flops:
        inputs = self.patches * self.config.model.d_ff
        return _linear(self.rows, inputs, self.config.data.pred_len)

    def anchor(self) -> Flops:
        model, data = self.config.model, self.config.data
        if model.anchor == "none":
            return Flops(0)
        inputs = model.num_anchor_inputs(data.seq_len, data.pred_len)
        features = model.anchor_random_features
        drawn = features * (data.seq_len + 2 * FEATURE_HARMONICS * model.reads_dates)
        if model.anchor_calendar == "day":  # means of the newest steps
            drawn += data.seq_len * num_calendar_scales(data.seq_len)
        sources = len(data.sources or [data])  # the weights of each are applied to every row
        return Flops(2 * self.rows * (sources * inputs * data.pred_len + drawn))

    @property
    def _prototypes(self) -> int:
        return self.config.model.num_prototypes

    def backbone(self) -> tuple[Flops, Flops]:
        """The language model, or what stands in its place; and LoRA beside it."""
        extra = self.config.tapr.use_tapr + 2 * bool(self.config.gram.use_gram)
        kind, prompt = self.config.backbone.kind, self.batch.prompt_tokens
        if kind not in LANGUAGE_MODELS:
            return self._substitute(extra + prompt + self.patches), Flops()
        recomputed = self.config.backbone.activation_checkpointing
        if recomputed or self.shape.model_type in ENCODERS:
            tokens = extra + prompt + self.patches
            counted, lora = self._pass(tokens, 0, with_gradient=True)
            # Again for their gradient, up to the last matrix of a block: nobody needs its outputs.
            last = self.shape.num_layers * self.shape.d_llm * self.shape.d_intermediate
            again = counted.forward + lora.forward - 2 * self.rows * tokens * last
            return counted + Flops(0, again) * recomputed, lora
        trained = self.config.backbone.lora.r > 0
        if self.config.model.token_order == "spec":
            before = extra + prompt
            read = self._pass(before, 0, with_gradient=extra > 0 or trained, reads_only=True)
            tail = self._pass(self.patches, before, with_gradient=True)
            return read[0] + tail[0], read[1] + tail[1]
        common = self.batch.common_tokens
        read = self._pass(prompt - common, common, with_gradient=trained, reads_only=True)
        tail = self._pass(extra + self.patches, prompt, with_gradient=True)
        counted, lora = read[0] + tail[0], read[1] + tail[1]
        if trained:  # they change each step, so what all prompts begin with is read again
            once = self._pass(common, 0, with_gradient=True, reads_only=True, rows=1)
            counted, lora = counted + once[0], lora + once[1]
        return counted, lora

    def _pass(
        self,
        tokens: int,
        seen_before: int,
        *,
        with_gradient: bool,
        reads_only: bool = False,
        rows: int | None = None,
    ) -> tuple[Flops, Flops]:
        """Count some tokens of each row through all blocks, and LoRA's part of it.

        Args:
            tokens: Of a row.
            seen_before: Tokens before them that they attend to.
            with_gradient: Whether a gradient comes back through them.
            reads_only: Whether the last block computes their keys and values alone.
            rows: Default those of the batch.
        """
        shape, rows = self.shape, self.rows if rows is None else rows
        count = rows * tokens
        if count == 0:
            return Flops(), Flops()
        blocks = shape.num_layers - reads_only
        block = _frozen(count, shape.matrix_weights_per_block)
        block += _attention(rows, tokens, seen_before + tokens, shape.d_query)
        counted = block * blocks
        if reads_only:
            projected = shape.d_llm * (shape.d_query + 2 * shape.d_key_value)
            used = 2 * shape.d_llm * shape.d_key_value  # nobody reads what the queries find
            used = projected if shape.model_type in FUSED_QKV else used
            counted += Flops(2 * count * projected, 2 * count * used)
        lora = Flops()
        if self.config.backbone.lora.r > 0:
            whole = count_parameters(self.config, shape).trained["LoRA"].matrices
            numbers = whole / shape.num_layers * blocks
            numbers += reads_only * _lora_of_reading(self.config, shape)
            lora = Flops(2 * count * numbers, 4 * count * numbers)
        if not with_gradient:
            return Flops(counted.forward), Flops(lora.forward)
        return counted, lora

    def _substitute(self, tokens: int) -> Flops:
        kind, width = self.config.backbone.kind, self.shape.d_llm
        count = self.rows * tokens
        counted = Flops()
        if kind in ("attention", "transformer"):
            counted += _linear(count, width, 4 * width)
            counted += _attention(self.rows, tokens, tokens, width)
        if kind == "transformer":
            counted += _linear(count, width, 2 * MLP_FACTOR * width)
        return counted


def _lora_of_reading(config: RunConfig, shape: BackboneShape) -> int:
    """Numbers of LoRA beside the matrices of queries, keys and values of a block."""
    lora = config.backbone.lora
    layers = {name.rsplit(".", 1)[-1]: sum(size) for name, size in linear_layers(shape).items()}
    if lora.target_modules == "auto":
        targets = ["c_attn", "query", "value", "q_proj", "v_proj"]
    else:
        targets = lora.target_modules if isinstance(lora.target_modules, list) else list(layers)
    reading = ("c_attn", "q_proj", "k_proj", "v_proj", "query", "key", "value")
    return lora.r * sum(layers[name] for name in reading if name in layers and name in targets)


def _encode_windows(config: RunConfig, windows: int) -> Flops:
    """The dual encoder (model/pattern_encoder.py) on windows."""
    width = config.gram.d_repr
    patches = -(-config.data.seq_len // SHAPE_PATCH_LEN)
    tokens = patches + 1
    block = _linear(windows * tokens, width, 8 * width)  # four of attention, two of twice the width
    block += _attention(windows, tokens, tokens, width)
    return (
        _linear(windows * patches, SHAPE_PATCH_LEN, width, into_inputs=False)
        + block * SHAPE_BLOCKS
        + _linear(windows, STATISTICS, width, into_inputs=False)
        + _linear(windows, width, width)
    )


def _linear(count: int, inputs: int, outputs: int, *, into_inputs: bool = True) -> Flops:
    """A trained matrix: gradients of its weights and, where asked for, of its inputs."""
    forward = 2 * count * inputs * outputs
    return Flops(forward, (2 if into_inputs else 1) * forward)


def _frozen(count: int, weights: int) -> Flops:
    return Flops(2 * count * weights, 2 * count * weights)


def _attention(rows: int, queries: int, keys: int, width: int) -> Flops:
    """Scores and weighted sum of all heads together; causal masks save nothing here."""
    forward = 4 * rows * queries * keys * width
    return Flops(forward, ATTENTION_BACKWARD * forward)
