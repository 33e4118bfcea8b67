"""What to change when memory is used up: the next rung of a ladder, from cheap to dear.

    batch -> seq_len -> llm_layers -> d_ff -> d_model -> n_scales -> top_k -> no GRA-M -> 4-bit

Only rungs that act on the part that grew are offered, in this order; each value is one that the
configuration accepts. What leaves the numbers as they are is offered beside the rung.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from dist_train.config import RunConfig
from model.config import LANGUAGE_MODELS

MIN_PATCHES = 4
"""A window is not shortened to fewer: the moving average of the trend spans five."""

MIN_WIDTH = 8
"""model.d_ff and model.d_model are not halved below it."""

MIN_FEATURES = 128
"""Random features of the anchor are not halved below it, but left out."""

MIN_ENTRIES = 1000
"""A bank with a limit is not halved below it."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Settings to change together."""

    settings: dict[str, int | bool | str]
    """Value by key."""

    effect: str

    @property
    def options(self) -> str:
        """The settings as a command line has them."""
        return " ".join(
            f"--{key} {str(value).lower() if isinstance(value, bool) else value}"
            for key, value in self.settings.items()
        )


def next_rung(config: RunConfig, phase: str | None, ranks: int = 1) -> Rung | None:
    """The first rung that a configuration can still go down.

    Args:
        config: The run.
        phase: Where memory was used up, a key of ``PHASES``; None: nobody knows.
        ranks: Ranks of the job.

    Returns:
        The rung; None at the end of the ladder.
    """
    return next(rungs(config, phase, ranks), None)


def rungs(config: RunConfig, phase: str | None, ranks: int = 1) -> Iterator[Rung]:
    """Every rung that a configuration can still go down, the cheapest first.

    Args:
        config: The run.
        phase: As in :func:`next_rung`.
        ranks: Ranks of the job.
    """
    for step in _LADDERS.get(phase or "", (_micro_batch, *_REST)):
        rung = step(config, ranks)
        if rung is not None:
            yield rung


def go_down(config: RunConfig, rung: Rung) -> RunConfig:
    """Change the settings of a rung.

    Raises:
        ValueError: They contradict others.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in rung.settings.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = value
    # All at once: half of a rung may be refused where the whole is not.
    changed = {name: replace(getattr(config, name), **own) for name, own in changes.items()}
    return replace(config, **changed)


def same_numbers(
    config: RunConfig, phase: str | None, ranks: int = 1, *, on_gpu: bool = False
) -> list[Rung]:
    """Settings that make room for a phase and leave the model and its training as they are.

    Args:
        config: The run.
        phase: As in :func:`next_rung`.
        ranks: Ranks of the job.
        on_gpu: Whether it was a GPU's memory.
    """
    found: list[Rung] = []
    zero = config.deepspeed
    checkpoints = (
        config.backbone.kind in LANGUAGE_MODELS
        and not config.backbone.activation_checkpointing
        and config.model.token_order != "prefix_cached"
    )
    if phase in ("forward", "backward", None) and checkpoints:
        found.append(_rung("backbone.activation_checkpointing", True, "recomputes the blocks"))
    if phase in ("backbone", "engine") and ranks > 1 and zero.zero_stage < 3:
        found.append(_rung("deepspeed.zero_stage", 3, "divides all weights over the ranks"))
    elif phase in ("engine", "backward", "optimizer") and ranks > 1 and zero.zero_stage < 2:
        found.append(_rung("deepspeed.zero_stage", 2, "divides gradients and optimizer state"))
    if (
        phase in ("engine", "optimizer") and on_gpu
        and zero.offload == "none" and zero.zero_stage > 0
    ):  # fmt: skip
        found.append(_rung("deepspeed.offload", "optimizer", "keeps the state in host memory"))
    if phase == "bank":
        if on_gpu and config.bank.device != "cpu":
            found.append(_rung("bank.device", "cpu", "searches on the CPU"))
        if ranks > 1 and config.bank.shard_group != "world":
            found.append(_rung("bank.shard_group", "world", "divides the index over the ranks"))
    if phase in ("loading", "data") and config.data.num_workers > 0:
        found.append(_rung("data.num_workers", 0, "starts no processes for the batches"))
    return found


def _rung(key: str, value: int | bool | str, effect: str) -> Rung:
    return Rung(settings={key: value}, effect=effect)


def _micro_batch(config: RunConfig, ranks: int) -> Rung | None:
    batch_size = config.train.batch_size
    per_rank = batch_size // ranks
    micro = config.train.micro_batch_size or per_rank
    if micro < 2:
        return None
    smaller = next(size for size in range(micro // 2, 0, -1) if per_rank % size == 0)
    return _rung(
        "train.micro_batch_size", smaller,
        f"the batch stays {batch_size}, in {per_rank // smaller} passes of each rank",
    )  # fmt: skip


def _evaluation_batch(config: RunConfig, ranks: int) -> Rung | None:
    size = config.train.eval_batch_size
    return None if size < 2 else _rung("train.eval_batch_size", size // 2, "changes no score")


def _seq_len(config: RunConfig, ranks: int) -> Rung | None:
    least = config.model.patch_len + (MIN_PATCHES - 1) * config.model.stride
    if config.data.seq_len <= least:
        return None
    return _rung("data.seq_len", max(least, config.data.seq_len // 2), "a shorter window")


def _random_features(config: RunConfig, ranks: int) -> Rung | None:
    features = config.model.anchor_random_features
    if not features:
        return None
    fewer = features // 2 if features >= 2 * MIN_FEATURES else 0
    return _rung("model.anchor_random_features", fewer, "the ridge bends less")


def _shared_weights(config: RunConfig, ranks: int) -> Rung | None:
    if not config.model.individual:
        return None
    return _rung("model.anchor_weights", "shared", "one ridge for all variates")


def _llm_layers(config: RunConfig, ranks: int) -> Rung | None:
    layers = config.backbone.llm_layers
    if layers < 2 or config.backbone.kind not in LANGUAGE_MODELS:
        return None
    return _rung("backbone.llm_layers", layers // 2, "fewer blocks of the backbone")


def _d_ff(config: RunConfig, ranks: int) -> Rung | None:
    return _halve("model.d_ff", config.model.d_ff)


def _d_model(config: RunConfig, ranks: int) -> Rung | None:
    return _halve("model.d_model", config.model.d_model)


def _halve(key: str, width: int) -> Rung | None:
    if width <= MIN_WIDTH:
        return None
    return _rung(key, max(MIN_WIDTH, width // 2), "narrower trained layers")


def _n_scales(config: RunConfig, ranks: int) -> Rung | None:
    if not config.tapr.use_tapr or config.tapr.n_scales <= 2:
        return None
    return _rung("tapr.n_scales", config.tapr.n_scales - 1, "one resolution fewer")


def _top_k(config: RunConfig, ranks: int) -> Rung | None:
    if config.gram.use_gram is False or config.gram.top_k < 2:
        return None
    return _rung("gram.top_k", config.gram.top_k // 2, "fewer neighbours")


def _no_gram(config: RunConfig, ranks: int) -> Rung | None:
    if config.gram.use_gram is False:
        return None
    settings: dict[str, int | bool | str] = {"gram.use_gram": False}
    if config.model.reads_future:
        settings["model.anchor"] = "ridge"
    return Rung(settings=settings, effect="no memory bank")


def _four_bits(config: RunConfig, ranks: int) -> Rung | None:
    if config.backbone.load_in_4bit or config.backbone.kind not in LANGUAGE_MODELS:
        return None
    if find_spec("bitsandbytes") is None:
        return None
    return _rung("backbone.load_in_4bit", True, "a quarter of bf16's frozen weights")


def _bank_entries(config: RunConfig, ranks: int) -> Rung | None:
    limit, stride = config.bank.limit, config.bank.bank_stride
    if config.gram.use_gram is False:
        return None
    if limit is not None:
        if limit <= MIN_ENTRIES:
            return None
        return _rung("bank.max_memory_size", max(MIN_ENTRIES, limit // 2), "half the entries")
    # Entries farther apart than a horizon would leave some futures out.
    if 2 * stride > config.data.pred_len:
        return None
    return _rung(
        "bank.bank_stride", 2 * stride,
        "half the entries; bank.index=ivf_pq keeps one byte of 16 where they are over 100,000",
    )  # fmt: skip


_Step = Callable[[RunConfig, int], Rung | None]
_REST: tuple[_Step, ...] = (
    _seq_len, _llm_layers, _d_ff, _d_model, _n_scales, _top_k, _no_gram, _four_bits,
)  # fmt: skip
_TRAINED: tuple[_Step, ...] = (_seq_len, _d_ff, _d_model, _n_scales, _no_gram)
_LADDERS: dict[str, tuple[_Step, ...]] = {
    "data": (),
    "ridge": (_random_features, _shared_weights, _seq_len, _top_k, _no_gram),
    "backbone": (_llm_layers, _four_bits),
    "layers": _TRAINED,
    "bank": (_bank_entries, _no_gram),
    # The frozen weights arrive on the GPU here; the window's length hardly counts among weights.
    "engine": (_llm_layers, _d_ff, _d_model, _no_gram, _four_bits),
    "optimizer": _TRAINED,
    "checkpoint": _TRAINED,
    "evaluation": (_evaluation_batch, *_REST),
}
"""What acts on the part of a phase; all others take the whole ladder."""
