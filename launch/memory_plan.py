"""How much memory one rank of a run needs, by part, in each phase of the run; free of torch.

What DeepSpeed 0.19 keeps, read in its source and checked by ``benchmarks.plan_memory``. Of n
trained numbers on W ranks, d bytes each in the compute type:

    part                       stage 0        stages 1, 2            stage 3
    trained weights            d n            d n                    d n / W, and what is gathered
    float32 copies             4 n, not fp32  4 n / W                4 n / W
    optimizer (AdamW)          8 n            8 n / W                8 n / W
    gradients                  d n            d n / W, and a bucket  d n / W, and a bucket
    gradients in the update    2 copies       a copy and 4 n / W     4 n / W

Stages 1 to 3 keep float32 copies beside float32 weights too, and take the norm of one gradient
after the other in float64. The frozen
weights are whole on every rank but under stage 3; in 4 bits they are
whole until stage 3 divides them. Gradients of one micro-batch are kept while the next one runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dist_train.config import RunConfig, check_batch_size
from dist_train.deepspeed_json import BUCKET
from dist_train.parameter_counts import ParameterCounts
from dist_train.shapes import BackboneShape
from model.config import FEATURE_HARMONICS, num_anchor_inputs

Device = Literal["cpu", "gpu"]
Part = Mapping[str, float]

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FLOAT32, FLOAT64 = 4, 8

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a number in NF4: itself, one byte of scale for 64, one float32 of scale for 256 of these.
Source: QLoRA, Dettmers et al. 2023 (arXiv:2305.14314), section 3; bitsandbytes' block sizes."""

LIVE_PARAMETERS = 1_000_000_000
"""Numbers that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters."""

GATHERED = "parameters gathered"


class StepBytes(Protocol):
    """What of :class:`launch.step_memory.StepMemory` is needed here."""

    @property
    def training(self) -> int:
        """Bytes of a forward and backward pass."""

    @property
    def gradients_then(self) -> int:
        """Numbers in gradients when it has most."""

    @property
    def evaluation(self) -> int:
        """Bytes of a forward pass without gradient."""


@dataclass(frozen=True, kw_only=True)
class BankBytes:
    """What the memory bank takes on one rank."""

    index: float = 0
    """The index that is searched."""

    building: float = 0
    """Beside it while it is loaded."""

    refreshed: bool = False
    """Whether that happens during the training too, beside the one that is searched."""

    ids: float = 0
    """Ids of all entries, in host memory."""

    on_device: bool = False
    """Whether the index lies on the GPU."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one rank by phase and part."""

    device: Device
    phases: Mapping[str, Part]
    """Of the GPU; on a CPU of the whole process."""

    host: Part = field(default_factory=dict)
    """Of the host, in its largest phase; empty on a CPU, where all is host memory."""

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> Part:
        """Parts of that phase."""
        return self.phases[self.peak_phase]

    @property
    def total(self) -> float:
        """Bytes of the largest phase."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> float:
        """Bytes of host memory, of a run on GPUs."""
        return sum(self.host.values())


def plan_memory(
    config: RunConfig,
    shape: BackboneShape,
    counts: ParameterCounts,
    step: StepBytes,
    *,
    ranks: int,
    precision: str,
    device: Device,
    runtime: float,
    num_variates: int = 1,
    bank: BankBytes | None = None,
) -> MemoryPlan:
    """Add up what one rank needs.

    Args:
        config: The run.
        shape: Its backbone.
        counts: Its parameters.
        step: What a step takes beside them.
        ranks: Of the job.
        precision: bf16, fp16 or fp32.
        device: Where it computes.
        runtime: Bytes before anything is built: the libraries, and of a GPU its context.
        num_variates: Of a window.
        bank: The memory bank; None: none.

    Raises:
        ConfigError: ``train.batch_size`` does not divide over the ranks.
    """
    micro = check_batch_size(config.train, ranks)
    states = _States(config, counts, ranks, ITEM_BYTES[precision], device)
    bank = bank or BankBytes()
    on_gpu = device == "gpu"
    kept: dict[str, float] = {
        "runtime": runtime,
        **states.kept,
        "other tensors": _other_tensors(config, shape, num_variates),
    }
    # The host of a GPU has the libraries too, and loads the weights before the GPU has them.
    host = dict(states.offloaded)
    here = kept if bank.on_device or not on_gpu else host
    here["bank index"] = bank.index
    host_or_here = host if on_gpu else kept
    host_or_here["bank ids"] = bank.ids
    host_or_here["closed form"] = _closed_form(config, num_variates)
    accumulates = config.train.batch_size // (micro * ranks) > 1
    gathered = {GATHERED: states.gathered}
    phases: dict[str, Part] = {
        "training": kept | gathered | {
            "gradients": states.gradients_beside(step.gradients_then, accumulates),
            "activations": step.training,
            "next bank index": bank.building if bank.refreshed and here is kept else 0,
            "4-bit matrix unpacked": _unpacked(config, shape, ITEM_BYTES[precision]),
        },
        "optimizer": kept | {"gradients": states.gradients_in_update},
        "evaluation": kept | gathered | {
            "activations": step.evaluation,
            "4-bit matrix unpacked": _unpacked(config, shape, ITEM_BYTES[precision]),
        },
    }  # fmt: skip
    ridge_sums = {"sums of the ridges": _ridge_sums(config, num_variates)}
    loading = {"frozen weights": states.loading, "trained weights": FLOAT32 * counts.trained_total}
    if on_gpu:
        if here is host:
            host["next bank index"] = bank.building
        else:
            phases["bank"] = kept | {"next bank index": bank.building}
        # Both come before anything else lies there.
        before = {"weights while loading": _sum(loading)} | ridge_sums
        largest = max(before, key=before.__getitem__)
        host = host | {largest: max(0, before[largest] - _sum(host))}
    else:
        phases["ridge"] = {"runtime": runtime} | ridge_sums
        phases["loading"] = {"runtime": runtime} | loading
        phases["engine start"] = kept | {"trained weights twice": states.copied_at_start}
        phases["bank"] = kept | {"next bank index": bank.building}
    return MemoryPlan(
        device=device,
        phases={name: _without_zeros(parts) for name, parts in phases.items()},
        host=_without_zeros(host) if on_gpu else {},
    )


def frozen_bytes(config: RunConfig, counts: ParameterCounts, item: int) -> float:
    """Bytes of the frozen weights, where a number in the compute type has ``item``."""
    packed = NF4_BITS / 8 if config.backbone.load_in_4bit else item
    return counts.frozen_matrices * packed + counts.frozen_rest * item


class _States:
    """What DeepSpeed keeps of weights, optimizer and gradients on one rank, in bytes."""

    def __init__(
        self, config: RunConfig, counts: ParameterCounts, ranks: int, item: int, device: Device
    ) -> None:
        self.stage, self.offload = config.deepspeed.zero_stage, config.deepspeed.offload
        self.ranks, self.item, self.device, self.counts = ranks, item, device, counts
        self.whole = counts.trained_total
        # Padded, so that all ranks have the same.
        self.share = sum(2 * math.ceil(size / (2 * ranks)) for size in counts.trained_groups)
        self.frozen = frozen_bytes(config, counts, item)
        reads_shares = self.stage == 3 and config.backbone.kind == "pretrained"
        self.loading = self.frozen / (ranks if reads_shares else 1)
        if reads_shares and config.backbone.load_in_4bit:  # a block is whole while it is packed
            self.loading += item * counts.frozen_matrices / config.backbone.llm_layers
        if config.backbone.kind == "random":
            self.loading = FLOAT32 * counts.frozen_total
        self._largest_group = max(
            2 * math.ceil(size / (2 * ranks)) for size in counts.trained_groups
        )

    @property
    def _has_copies(self) -> bool:
        """Whether the optimizer works on float32 copies of its own."""
        return self.stage > 0 or self.item != FLOAT32

    @property
    def _updated(self) -> int:
        """Numbers that this rank updates."""
        return self.whole if self.stage == 0 else self.share

    @property
    def kept(self) -> dict[str, float]:
        """What is there all the time, on the device."""
        divided = self.ranks if self.stage == 3 else 1
        on_host = self.offload == "all" and self.device == "gpu"
        parts = {
            "frozen weights": 0 if on_host else self.frozen / divided,
            "trained weights": 0 if on_host else self.item * self.whole / divided,
        }
        if self.stage == 3:
            parts["gradients kept"] = (
                0 if self.offload != "none" and self.device == "gpu" else self.item * self.share
            )
            parts["gradient bucket"] = self._bucket
        if self.offload == "none" or self.device == "cpu":
            parts |= self._optimizer
        elif self.stage < 3:
            parts["gradient on its way"] = self.item * self.counts.largest_trained
        return parts

    @property
    def _optimizer(self) -> dict[str, float]:
        return {
            "float32 copies": FLOAT32 * self._updated if self._has_copies else 0,
            "optimizer": 2 * FLOAT32 * self._updated,
        }

    @property
    def offloaded(self) -> dict[str, float]:
        """What lies in the memory of the host of a GPU."""
        if self.offload == "none" or self.device == "cpu":
            return {}
        parts = self._optimizer | {"gradients": FLOAT32 * self.share}
        if self.stage < 3:
            parts["weights on their way"] = self.item * self.share
        if self.offload == "all":
            parts["frozen weights"] = self.frozen / self.ranks
            parts["trained weights"] = self.item * self.whole / self.ranks
        return parts

    @property
    def _bucket(self) -> float:
        """A bucket is taken whole, but of host memory only what is written counts."""
        return self.item * (min(BUCKET, self.whole) if self.device == "cpu" else BUCKET)

    @property
    def gathered(self) -> float:
        """Parameters that ZeRO-3 has gathered during a step; alone it has all anyway."""
        if self.stage < 3 or (self.ranks == 1 and self.offload != "all"):
            return 0
        whole = self.frozen + self.item * self.whole
        numbers = self.counts.frozen_total + self.whole
        return whole * min(1, LIVE_PARAMETERS / numbers)

    def gradients_beside(self, numbers: int, accumulates: bool) -> float:
        """Gradients beside activations.

        Args:
            numbers: Numbers in those that are there by then.
            accumulates: Whether those of an earlier micro-batch are kept.
        """
        if self.stage == 3:
            return self.item * numbers
        earlier = 0
        if accumulates and self.offload == "none":
            earlier = self.share if self.stage == 2 else self.whole
        if self.stage == 0:
            return self.item * max(numbers, earlier)
        # On a GPU the bucket is there from the first gradient on, whatever is in it.
        return self.item * (earlier + (BUCKET if self.device == "gpu" else numbers))

    @property
    def gradients_in_update(self) -> float:
        """Gradients, and copies of them, when most of them are there."""
        item, whole, share = self.item, self.whole, self.share
        if self.stage == 0:
            # Flattened to be sent; then each is copied in float32.
            copies = FLOAT32 * whole if item != FLOAT32 else 0
            return item * whole + max(item * whole, copies)
        # Norms are taken in float64, one gradient after the other.
        norm = FLOAT64 * min(self.counts.largest_trained, share)
        if self.offload != "none" and self.device == "gpu":
            return 0
        in_float32 = FLOAT32 * self._largest_group if item != FLOAT32 else 0
        if self.stage == 3:  # the gradients themselves are kept anyway
            return max(norm, FLOAT32 * share if item != FLOAT32 else item * share)
        held = item * (whole if self.stage == 1 else share)
        reducing = self._bucket + item * share
        return max(reducing, held + max(norm, item * self._largest_group + in_float32))

    @property
    def copied_at_start(self) -> float:
        """What DeepSpeed has twice while it lays the trained weights end to end."""
        return self.item * self._largest_group if 0 < self.stage < 3 else 0


def _other_tensors(config: RunConfig, shape: BackboneShape, num_variates: int) -> float:
    """The basis of the words, and the anchor."""
    size = 0.0
    if config.model.prototype_map == "factored":
        size += FLOAT32 * shape.d_llm**2
    model, data = config.model, config.data
    if model.anchor != "none":
        inputs = model.num_anchor_inputs(data.seq_len, data.pred_len)
        own = num_variates if model.individual else 1
        size += FLOAT32 * own * _num_sources(config) * data.pred_len * inputs
        drawn = data.seq_len + 2 * FEATURE_HARMONICS + 1
        size += FLOAT32 * drawn * model.anchor_random_features
    return size


def _closed_form(config: RunConfig, num_variates: int) -> float:
    """Solutions that are kept for the checkpoint; of one set of weights next to nothing."""
    model, data = config.model, config.data
    own = (num_variates if model.individual else 1) * _num_sources(config)
    if own == 1:
        return 0
    inputs = model.num_anchor_inputs(data.seq_len, data.pred_len)
    fits = 3 if model.reads_future or config.gram.use_gram == "auto" else 1
    return FLOAT64 * own * fits * data.pred_len * inputs


def _num_sources(config: RunConfig) -> int:
    return len(config.data.sources or [config.data])


def _ridge_sums(config: RunConfig, num_variates: int) -> float:
    """What the ridge of each variate is solved from; of a window alone it is next to nothing."""
    steps, extension = config.data.pred_len, config.model.anchor_extension
    if not config.model.individual:
        num_variates = int(extension.random_features > 0)
    inputs = num_anchor_inputs(config.data.seq_len, steps, reads_future=False, extension=extension)
    sums = 4 * inputs * (inputs + steps)  # two norms of two splits
    if config.model.reads_future and num_variates and not config.model.individual:
        # A sample and all samples of two splits, each with and without what is retrieved.
        reading = inputs + steps
        sums = 8 * (inputs * (inputs + steps) + reading * (reading + steps))
    solutions = (8 if extension.random_features else 7) * inputs * steps
    return FLOAT64 * num_variates * (sums + solutions)


def _unpacked(config: RunConfig, shape: BackboneShape, item: int) -> float:
    """The largest matrix of a block, which 4-bit numbers are unpacked to for a product."""
    if not config.backbone.load_in_4bit:
        return 0
    largest = max(shape.d_intermediate, 3 * shape.d_llm if shape.model_type == "gpt2" else 0,
                  shape.d_query)  # fmt: skip
    return item * shape.d_llm * largest


def _sum(parts: Part) -> float:
    return sum(parts.values())


def _without_zeros(parts: Part) -> Part:
    return {name: size for name, size in parts.items() if size > 0}
