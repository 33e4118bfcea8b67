"""Settings of the forecaster: what a user may choose about the model and its backbone.

Free of torch, so that a configuration is read and refused before anything heavy is imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from math import inf, isfinite
from typing import Literal

Calendar = Literal["none", "year", "day"]
"""What the anchor's weights may change with."""

DAY_HARMONICS, FEATURE_HARMONICS = 3, 2
"""Waves of the time of day that the calendar's inputs are, and that random features are made of."""


ANCHOR_OPTIONS = ("anchor_weights", "anchor_calendar", "anchor_random_features")
"""What makes the anchor more than one ridge of the window, which it is by default."""


def told(options: Mapping[str, object]) -> str:
    """Say keys and values in a message."""
    return ", ".join(f"{key}={value}" for key, value in options.items())


def reset(options: Iterable[str]) -> str:
    """Say what takes options of the anchor back, as a command line does."""
    return " ".join(
        f"--model.{key} {getattr(ModelConfig, key)}"
        for key in (option.removeprefix("model.") for option in options)
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Layers around the frozen language model."""

    patch_len: int = 16
    """Time steps per patch."""

    stride: int = 8
    """Time steps between the starts of neighbouring patches."""

    patch_embedding: Literal["conv", "linear"] = "conv"
    """conv: width-3 circular convolution over patches (Time-LLM's); linear: each patch alone."""

    d_model: int = 64
    """Width of one patch embedding."""

    d_ff: int = 128
    """Key width of reprogramming attention, and features of each position the head reads."""

    n_heads: int = 8
    """Heads of the reprogramming attention."""

    num_prototypes: int = 1000
    """Text prototypes that the vocabulary is mapped to."""

    prototype_map: Literal["factored", "vocabulary"] = "factored"
    """vocabulary: one trained number per word and prototype, as published; factored: the same
    prototypes from as many numbers per prototype as the embeddings have directions."""

    dropout: float = 0.15
    """Dropout probability of the trained layers; the frozen backbone has none."""

    norm: Literal["mean", "last"] = "mean"
    """What instance normalisation subtracts: the window's mean, or its last value."""

    prompt: Literal["full", "stats_only", "none"] = "full"
    """full: description, task and statistics; stats_only: the statistics; none: no prompt."""

    num_prompt_lags: int = 5
    """Autocorrelation lags named in the prompt."""

    lags: Literal["peaks", "fft_raw"] = "peaks"
    """peaks: local maxima of the autocorrelation; fft_raw: Time-LLM's plain top values."""

    max_prompt_tokens: int = 128
    """Longest prompt, in tokens; the description is cut to fit, never the statistics."""

    token_order: Literal["spec", "prefix_cached"] = "spec"
    """spec: trend, retrieval, prompt, patches; prefix_cached: prompt first, which is read without
    gradient, its common part once for the whole run; needs a decoder."""

    anchor: Literal["none", "ridge", "ridge_retrieval"] = "ridge"
    """ridge: the LLM path corrects a closed-form ridge regression of the window;
    ridge_retrieval: of the window and the retrieved futures; none: it stands alone."""

    anchor_weights: Literal["shared", "individual"] = "shared"
    """shared: all variates have one ridge; individual: each of a wide table may deviate from it,
    as far as validation likes best."""

    anchor_calendar: Calendar = "none"
    """year, day: the ridge's weights may change with the time of the year, or of the day;
    validation says whether."""

    anchor_random_features: int = 0
    """Random features of the window that the ridge may read as well, which makes it a kernel ridge;
    validation says whether."""

    anchor_rows: int = 16384
    """Training windows of one variate that the ridge with retrieval is solved on, evenly spread:
    each of them is a search of the memory."""

    def __post_init__(self) -> None:
        at_least_one = ("patch_len", "d_model", "d_ff", "n_heads", "num_prototypes", "anchor_rows")
        for key in at_least_one:
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} must be at least 1, got {getattr(self, key)}.")
        if not 1 <= self.stride <= self.patch_len:
            raise ValueError(
                f"model.stride must be in [1, patch_len={self.patch_len}], got {self.stride}: "
                "a larger stride would skip time steps between patches."
            )
        if self.anchor_random_features < 0:
            raise ValueError(
                f"model.anchor_random_features must be at least 0, got "
                f"{self.anchor_random_features}: 0 leaves them out."
            )
        if self.anchor == "none" and self.anchor_options:
            raise ValueError(
                f"model.anchor=none, but {told(self.anchor_options)}: use ridge or "
                f"ridge_retrieval, or {reset(self.anchor_options)}."
            )
        if self.anchor_calendar == "year" and len(self.anchor_options) > 1:
            raise ValueError(
                f"{told(self.anchor_options)}: the year goes with neither of the others, use "
                "model.anchor_calendar=none or day."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}.")
        if not 1 <= self.num_prompt_lags <= 20:
            raise ValueError(
                f"model.num_prompt_lags must be in [1, 20], got {self.num_prompt_lags}: "
                "use model.prompt=none for a forecast without a prompt."
            )
        if self.max_prompt_tokens < 1:
            raise ValueError(
                f"model.max_prompt_tokens must be at least 1, got {self.max_prompt_tokens}."
            )

    @property
    def reads_future(self) -> bool:
        """Whether the anchor reads what the memory retrieves."""
        return self.anchor == "ridge_retrieval"

    @property
    def reads_dates(self) -> bool:
        """Whether the weights of the anchor may change with the calendar."""
        return self.anchor_calendar != "none"

    @property
    def individual(self) -> bool:
        """Whether each variate may have weights of its own in the anchor."""
        return self.anchor_weights == "individual"

    @property
    def anchor_options(self) -> dict[str, str | int]:
        """What makes the anchor more than one ridge of the window, by its key."""
        return {
            f"model.{key}": getattr(self, key)
            for key in ANCHOR_OPTIONS
            if getattr(self, key) != getattr(ModelConfig, key)
        }

    @property
    def anchor_extension(self) -> "Extension":
        """What the anchor may read beside the window and what is retrieved."""
        return Extension(calendar=self.anchor_calendar, random_features=self.anchor_random_features)

    def num_anchor_inputs(self, seq_len: int, pred_len: int) -> int:
        """Count the inputs of the anchor, where there is one."""
        return num_anchor_inputs(
            seq_len, pred_len, reads_future=self.reads_future, extension=self.anchor_extension
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank matrices trained beside the frozen ones (LoRA, Hu et al. 2021)."""

    r: int = 0
    """Rank of each pair of matrices; 0: none, the language model stays as it is."""

    alpha: float = 16.0
    """The product of a pair is scaled by alpha / r."""

    dropout: float = 0.0
    """Dropout probability of what enters a pair; active in training."""

    target_modules: Literal["auto", "all-linear"] | list[str] = "auto"
    """Layers that get a pair: auto: peft's choice for the architecture; all-linear; or names."""

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ValueError(f"backbone.lora.r must not be negative, got {self.r}: 0 is none.")
        if not 0 < self.alpha < inf:
            raise ValueError(f"backbone.lora.alpha must be positive, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"backbone.lora.dropout must be in [0, 1), got {self.dropout}.")
        # A word that is no list of names would be taken for a pattern.
        if not isinstance(self.target_modules, list) and self.target_modules not in (
            "auto", "all-linear",
        ):  # fmt: skip
            raise ValueError(
                f"backbone.lora.target_modules={self.target_modules!r}: give auto, all-linear or "
                "a list of names."
            )
        if self.target_modules == []:
            raise ValueError("backbone.lora.target_modules is empty: name a layer, or set r=0.")


BackboneKind = Literal["pretrained", "random", "none", "attention", "transformer"]
LANGUAGE_MODELS = ("pretrained", "random")
"""Kinds that are a language model; the others stand in its place, to see what it is worth."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The frozen language model, or what stands in its place."""

    name: str = "smollm2-135m"
    """A Hugging Face hub name, a local folder, a .gguf file, or the embedded smollm2-135m."""

    llm_layers: int = 12
    """Blocks kept, counted from the input; at most as many as the model has."""

    kind: BackboneKind = "pretrained"
    """pretrained: as published; random: its architecture freshly initialised; none: its tokens go
    to the head as they are; attention, transformer: one trained layer in its place. The last four
    are ablations (Tan et al. 2024), and keep the model's word embeddings."""

    load_in_4bit: bool = False
    """Keep the frozen matrices as 4-bit NF4 numbers (bitsandbytes, double quantisation)."""

    lora: LoraConfig = field(default_factory=LoraConfig)

    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """sdpa: PyTorch's own, on any device; flash_attention_2: the flash_attn package, on GPUs."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("backbone.name must not be empty.")
        if self.llm_layers < 1:
            raise ValueError(f"backbone.llm_layers must be at least 1, got {self.llm_layers}.")
        if self.kind not in LANGUAGE_MODELS:
            for key, asked in (
                ("load_in_4bit", self.load_in_4bit),
                ("lora.r", self.lora.r > 0),
                ("activation_checkpointing", self.activation_checkpointing),
            ):
                if asked:
                    raise ValueError(
                        f"backbone.{key} needs a language model, and backbone.kind={self.kind} "
                        "has none: use backbone.kind=pretrained, or leave it out."
                    )
        if self.attention == "flash_attention_2" and find_spec("flash_attn") is None:
            raise ValueError(
                "backbone.attention=flash_attention_2: the package flash_attn is not installed: "
                "install it, or use backbone.attention=sdpa."
            )


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What an anchor may read beside the window and what is retrieved."""

    calendar: Calendar = "none"
    """What its weights change with."""

    random_features: int = 0
    """How many of them, see :mod:`model.random_features`; behind the inputs of the calendar."""

    def __bool__(self) -> bool:
        return self != Extension()

    @property
    def parts(self) -> tuple["Extension", ...]:
        """Nothing, the calendar alone, and all, as far as they differ: the least first."""
        return tuple(dict.fromkeys((Extension(), Extension(calendar=self.calendar), self)))

    def num_inputs(self, seq_len: int) -> int:
        """Count them."""
        return num_calendar_inputs(self.calendar, seq_len) + self.random_features


NO_EXTENSION = Extension()

PLAIN_ANCHOR = reset(ANCHOR_OPTIONS).split()
"""Options of a command that leave the anchor one ridge of the window."""


def num_anchor_inputs(
    seq_len: int, pred_len: int, *, reads_future: bool, extension: Extension
) -> int:
    """Count what one weight row of the anchor is multiplied with."""
    return seq_len + (pred_len if reads_future else 0) + extension.num_inputs(seq_len)


def num_calendar_inputs(calendar: Calendar, seq_len: int) -> int:
    """Count what :func:`model.calendar_inputs.calendar_inputs` makes."""
    if calendar == "none":
        return 0
    if calendar == "year":
        return 2 * seq_len
    return 1 + 2 * DAY_HARMONICS + 4 * num_calendar_scales(seq_len)


def num_calendar_scales(seq_len: int) -> int:
    """Count the lengths 2, 4, 8, ... up to the whole window."""
    return max(1, (seq_len - 1).bit_length())


def num_patches(seq_len: int, patch_len: int, stride: int) -> int:
    """Count the patches cut from one window: ``ceil((L - patch_len) / stride) + 1``.

    Raises:
        ValueError: The window is shorter than one patch.
    """
    if seq_len < patch_len:
        raise ValueError(
            f"data.seq_len={seq_len} is shorter than one patch (model.patch_len={patch_len}): "
            "lengthen the window or shorten the patch."
        )
    return -(-(seq_len - patch_len) // stride) + 1


@dataclass(frozen=True, kw_only=True)
class TaprConfig:
    """Trend-aware patch router: multi-scale decomposition, trend head, trend fusion."""

    use_tapr: bool = True
    """Build the trend-aware patch router; false builds none of its parameters."""

    n_scales: int = 3
    """Resolutions of the patch sequence: pooled by 1, 4, 16... (factor 4^i), 2 to 5."""

    gate_init: float = 0.0
    """Start of the residual gate on the fused scales; 0 starts as the baseline does."""

    label_smoothing: float = 0.1
    """Probability that the cross-entropies spread over all classes."""

    trend_thresholds: Literal["quantile", "learnable"] | list[float] = "quantile"
    """quantile: 15/40/60/85 % of the training changes; learnable; or four ascending numbers."""

    lambda_dir: float = 0.3
    """Weight of the cross-entropy of down / flat / up."""

    lambda_mag: float = 0.3
    """Weight of the cross-entropy of strong down / weak down / weak up / strong up."""

    lambda_hcl: float = 0.1
    """Weight of the consistency between the two levels."""

    lambda_reg: float = 0.1
    """Weight of the regression of the change; 0 does not build the regression."""

    lambda_trend: float = 0.5
    """Factor on all trend losses."""

    trend_fusion: Literal["train_only", "always", "never"] = "always"
    """When the expected change acts on the forecast; train_only leaves it out of evaluation."""

    fusion_form: Literal["multiplicative", "additive"] = "additive"
    """additive: the change is added to the normalised forecast; multiplicative: it scales it."""

    fusion_factors: Literal["learned"] | list[float] = "learned"
    """Change that each magnitude class stands for: learned from zero, or four fixed numbers."""

    def __post_init__(self) -> None:
        if not 2 <= self.n_scales <= 5:
            raise ValueError(
                f"tapr.n_scales must be in [2, 5], got {self.n_scales}: "
                "use tapr.use_tapr=false for a single scale."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"tapr.label_smoothing must be in [0, 1), got {self.label_smoothing}: "
                "0 switches smoothing off."
            )
        for key in ("lambda_dir", "lambda_mag", "lambda_hcl", "lambda_reg", "lambda_trend"):
            _check_weight(f"tapr.{key}", getattr(self, key))
        _check_finite("tapr.gate_init", self.gate_init)
        if isinstance(self.trend_thresholds, list):
            _check_four("tapr.trend_thresholds", self.trend_thresholds, "quantile or learnable")
            if not all(a < b for a, b in pairwise(self.trend_thresholds)):
                raise ValueError(
                    f"tapr.trend_thresholds must ascend, got {self.trend_thresholds}: "
                    "sort them, and separate equal ones."
                )
        if isinstance(self.fusion_factors, list):
            _check_four("tapr.fusion_factors", self.fusion_factors, "learned")
            if self.fusion_form == "additive" and self.lambda_reg > 0:
                raise ValueError(
                    f"tapr.fusion_factors={self.fusion_factors} would go unused: additive fusion "
                    f"takes the regressed change while tapr.lambda_reg={self.lambda_reg} builds "
                    "it. Set tapr.lambda_reg=0 or tapr.fusion_factors=learned."
                )

    @property
    def builds_change(self) -> bool:
        """Whether level 3 of the trend head, the regression of the change, exists."""
        return self.lambda_reg > 0


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Global retrieval-augmented memory: which histories are found, and how they are used."""

    use_gram: bool | Literal["auto"] = "auto"
    """Build the memory; auto: the better of the ridge with and without it, on validation."""

    top_k: int = 5
    """Neighbours per row."""

    d_repr: int = 128
    """Width of the shape code and of the value code; of the whole key where it is anchored."""

    temperature: float = 0.1
    """Neighbour weights are softmax(-distance / temperature)."""

    retrieval_key: Literal["dual", "anchored"] = "dual"
    """dual: learned shape and value codes; anchored: the window minus its last value, pooled."""

    retrieval_scope: Literal["source", "across", "both"] = "both"
    """Where neighbours come from, of several data.sources: the window's own, the others, or all."""

    neighbours: Literal["nearest", "random"] = "nearest"
    """nearest: found by their keys; random: drawn by lot from what a query may see and weighed by
    the same keys, to tell what the search is worth."""

    gate_init: float = 0.0
    """Start of the factor on the gated knowledge; 0 starts as the baseline does."""

    lambda_retrieval: float = 0.3
    """Factor on both gate losses."""

    refresh_every: int | Literal["never"] | None = None
    """Optimizer steps between two encodings of the bank; none: once per epoch; never: the keys
    stay those of the encoder before training."""

    refresh_lag: int | None = None
    """Steps from the encoder's snapshot to the swap, encoded meanwhile; none: a quarter of them."""

    leak_alarm: Literal["stop", "warn"] = "stop"
    """What an overlap between a query and what it retrieved does to the run."""

    def __post_init__(self) -> None:
        # 0 and 1 equal false and true, a typo's string equals neither.
        if not (isinstance(self.use_gram, bool) or self.use_gram == "auto"):
            raise ValueError(
                f"gram.use_gram must be true, false or auto, got {self.use_gram!r}: choose one."
            )
        if self.top_k < 1:
            raise ValueError(
                f"gram.top_k must be at least 1, got {self.top_k}: "
                "use gram.use_gram=false to retrieve nothing."
            )
        if self.d_repr < 4 or self.d_repr % 4:
            raise ValueError(
                f"gram.d_repr must be a positive multiple of 4, got {self.d_repr}: "
                "the shape encoder has four attention heads."
            )
        if not 0 < self.temperature < inf:
            raise ValueError(
                f"gram.temperature must be positive, got {self.temperature}: "
                "a small one keeps the nearest neighbour, a large one averages all."
            )
        _check_finite("gram.gate_init", self.gate_init)
        _check_weight("gram.lambda_retrieval", self.lambda_retrieval)
        every = self.refresh_every
        if every not in (None, "never") and (isinstance(every, str) or every < 1):
            raise ValueError(
                f"gram.refresh_every must be at least 1, or never, got {every}: "
                "leave it out to refresh once per epoch."
            )
        if self.refresh_lag is not None and self.refresh_lag < 0:
            raise ValueError(
                f"gram.refresh_lag must not be negative, got {self.refresh_lag}: "
                "0 waits while the bank is encoded."
            )
        if self.refresh_lag is not None and isinstance(every, int) and self.refresh_lag >= every:
            raise ValueError(
                f"gram.refresh_lag={self.refresh_lag} must be less than gram.refresh_every="
                f"{every}: one refresh is over before the next begins."
            )


def _check_weight(key: str, weight: float) -> None:
    if not 0 <= weight < inf:
        raise ValueError(f"{key} must be finite and not negative, got {weight}: 0 is off.")


def _check_finite(key: str, number: float) -> None:
    if not isfinite(number):
        raise ValueError(f"{key} must be a finite number, got {number}: 0 is the default.")


def _check_four(key: str, numbers: list[float], other: str) -> None:
    if len(numbers) != 4 or not all(isfinite(number) for number in numbers):
        raise ValueError(f"{key} must be four finite numbers, or {other}, got {numbers}.")
