"""What one training step takes beside weights and optimizer, found without any memory.

The run's own forecaster is built on the meta device and does one step on fake tensors, which have
shapes and no values, while every tensor that comes and goes is counted. Layers, recomputation,
LoRA, the order of tokens and the type of the numbers are thereby the run's own, not a formula's.

Counted is what torch's operators return. Not counted: what a kernel uses inside (convolutions,
attention), and what an allocator loses between blocks. Operators are those of a CPU; a GPU's
attention keeps the same tensors for its backward pass.
"""

import dataclasses
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dist_train.config import RunConfig, config_to_dict
from model.backbone_loading import build_weightless
from model.batch import ForecastInputs, ForecastOutput, RetrievedWindows
from model.config import LANGUAGE_MODELS
from model.forecaster import Forecaster

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# From here on each block adds the same; with fewer the largest moment may be another one.
FEW_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The most that a step has alive at once, in bytes, weights and their gradients left out."""

    training: int
    """In a forward and backward pass."""

    gradients_then: int
    """Numbers in the gradients that are there by then."""

    evaluation: int
    """In a forward pass without gradient."""


def step_memory(
    config: RunConfig,
    content: Mapping[str, Any],
    num_variates: int,
    micro_batch: int,
    precision: str,
) -> StepMemory:
    """Do a step without memory.

    Args:
        config: The run; ``gram.use_gram=auto`` is built.
        content: The backbone's config.json.
        num_variates: Variates of the series; each is a row.
        micro_batch: Windows per forward pass.
        precision: bf16, fp16 or fp32.

    Returns:
        What it takes. That of more than five blocks is extrapolated from four and five.
    """
    layers = config.backbone.llm_layers
    if config.backbone.kind not in LANGUAGE_MODELS or layers <= FEW_BLOCKS + 1:
        return _cached(config, content, num_variates, micro_batch, precision)
    few, more = (
        _cached(_with_layers(config, count), content, num_variates, micro_batch, precision)
        for count in (FEW_BLOCKS, FEW_BLOCKS + 1)
    )
    further = layers - FEW_BLOCKS
    return StepMemory(
        training=few.training + further * (more.training - few.training),
        gradients_then=more.gradients_then,
        evaluation=few.evaluation + further * (more.evaluation - few.evaluation),
    )


def _with_layers(config: RunConfig, layers: int) -> RunConfig:
    backbone = dataclasses.replace(config.backbone, llm_layers=layers)
    return dataclasses.replace(config, backbone=backbone)


_KNOWN: dict[str, StepMemory] = {}


def _cached(
    config: RunConfig,
    content: Mapping[str, Any],
    num_variates: int,
    micro_batch: int,
    precision: str,
) -> StepMemory:
    """Once for all settings that make no difference here."""
    sections = {
        key: config_to_dict(getattr(config, key)) for key in ("model", "backbone", "tapr", "gram")
    }
    sections["backbone"] |= {"name": None, "load_in_4bit": None}
    lengths = (config.data.seq_len, config.data.pred_len, config.train.eval_batch_size)
    key = json.dumps([sections, dict(content), lengths, num_variates, micro_batch, precision],
                     sort_keys=True)  # fmt: skip
    if key not in _KNOWN:
        _KNOWN[key] = _simulate(config, content, num_variates, micro_batch, DTYPES[precision])
    return _KNOWN[key]


def _simulate(
    config: RunConfig,
    content: Mapping[str, Any],
    num_variates: int,
    micro_batch: int,
    dtype: torch.dtype,
) -> StepMemory:
    backbone = build_weightless(config.backbone, content, dtype)
    gram = dataclasses.replace(config.gram, use_gram=config.gram.use_gram is not False)
    with torch.device("meta"):
        model = Forecaster(config.model, config.data.seq_len, config.data.pred_len, backbone,
                           tapr=config.tapr, gram=gram, num_variates=num_variates)  # fmt: skip
    model.to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _replace_by_fakes(model)
        model.train()
        counter = _LiveTensors()
        counter.leave_out(model)
        hooks = [
            _hook(parameter, counter.take_gradient)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        inputs, retrieved, target = random_batch(config, num_variates, micro_batch)
        with counter:
            output = model(inputs, retrieved, target)
            total_of(output).backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()
        del output
        training, gradients = counter.peak, counter.gradients_at_peak
        model.eval()
        counter = _LiveTensors()
        counter.leave_out(model)
        inputs, retrieved, _ = random_batch(config, num_variates, config.train.eval_batch_size)
        with counter, torch.no_grad():
            model(inputs, retrieved)
    return StepMemory(training=training, gradients_then=gradients, evaluation=counter.peak)


def _hook(parameter: Any, take: Any) -> Any:
    return parameter.register_post_accumulate_grad_hook(take)


def _replace_by_fakes(model: Forecaster) -> None:
    """Turn tensors of the meta device into fake ones of a CPU, whose operators are then chosen."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cpu")
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    if model.prototypes.is_factored:  # is made once per run, long before the largest step
        model._basis = torch.empty(model.backbone.d_llm, model.backbone.d_llm)
    if model.trend is not None:
        model.trend.thresholds._known_fitted = True  # a fake flag cannot be read


def random_batch(
    config: RunConfig, num_variates: int, size: int, device: torch.device | None = None
) -> tuple[ForecastInputs, RetrievedWindows | None, Tensor]:
    """Inputs, neighbours and target of a micro-batch, with prompts of the longest kind.

    Args:
        config: The run; ``gram.use_gram=auto`` gets neighbours.
        num_variates: Variates of a window.
        size: Windows.
        device: Where to; None: a CPU.
    """
    rows, data, top_k = size * num_variates, config.data, config.gram.top_k
    ids = mask = None
    if config.model.prompt != "none":
        ids = torch.zeros(rows, config.model.max_prompt_tokens, dtype=torch.int64, device=device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, 0] = False  # rows differ in length, and what is padded takes a mask
    retrieved = None
    if config.gram.use_gram is not False:
        retrieved = RetrievedWindows(
            windows=torch.randn(rows, top_k, data.seq_len, device=device),
            futures=torch.randn(rows, top_k, data.pred_len, device=device),
            ids=torch.zeros(rows, top_k, dtype=torch.int64, device=device),
            valid=torch.ones(rows, top_k, dtype=torch.bool, device=device),
        )
    context = torch.randn(size, data.seq_len, num_variates, device=device)
    target = torch.randn(size, data.pred_len, num_variates, device=device)
    phase = torch.ones(size, 4, device=device)
    inputs = ForecastInputs(context=context, prompt_ids=ids, prompt_mask=mask, calendar_phase=phase)
    return inputs, retrieved, target


def total_of(output: ForecastOutput) -> Tensor:
    """A number that everything that is trained acts on; the real losses are as small."""
    loss = output.forecast.square().mean()
    if output.trend is not None:
        loss = loss + output.trend.direction.mean() + output.trend.magnitude.mean()
    if output.gate is not None and output.match is not None:
        loss = loss + output.gate.mean() + output.match.mean()
    return loss


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive while it is entered, views once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
        self._sizes: dict[int, int] = {}
        self._left_out: list[Any] = []

    def leave_out(self, model: Forecaster) -> None:
        """Do not count the tensors of a model, nor views of them."""
        tensors = [*model.parameters(), *model.buffers()]
        if model._basis is not None:
            tensors.append(model._basis)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._left_out.append(storage)  # kept alive: its identity must not be given again
            self._sizes[id(storage)] = 0

    def take_gradient(self, parameter: Tensor) -> None:
        """Count a parameter's gradient apart, and free it."""
        self.gradients += parameter.numel()
        parameter.grad = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = id(storage)
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, key)
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients
        return result

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storages(result: Any) -> Iterator[Any]:
    for item in tree_iter(result):
        if isinstance(item, Tensor):
            yield item.untyped_storage()
