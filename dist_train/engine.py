"""From the run configuration to a DeepSpeed engine; it and engine_state alone import deepspeed."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from dist_train import distributed, engine_state, progress
from dist_train.config import RunConfig, check_batch_size
from dist_train.deepspeed_json import BUCKET, load_user_json
from dist_train.optim import build_optimizer, build_schedule
from model.backbone_loading import Partition
from model.forecaster import Forecaster


def deepspeed_json(config: RunConfig, world_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Derive the DeepSpeed JSON of a run; the user's own file is merged over it.

    Args:
        config: The run.
        world_size: Ranks of the job.
        dtype: Compute type of the model: float32, bfloat16 or float16.

    Raises:
        ConfigError: The batch does not divide, or the user's file is unusable.
    """
    micro = check_batch_size(config.train, world_size)
    zero: dict[str, Any] = {
        "stage": config.deepspeed.zero_stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if config.deepspeed.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.deepspeed.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    derived: dict[str, Any] = {
        "train_batch_size": config.train.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.train.batch_size // (micro * world_size),
        "gradient_clipping": config.train.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW is used everywhere: it needs no compiler on the machine.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 2**31,
    }
    if config.deepspeed.config_file is None:
        return derived
    return _merge(derived, load_user_json(Path(config.deepspeed.config_file)))


def prepare() -> None:
    """Import DeepSpeed, quietly, without what it would compile, and let it join the job.

    Called again it does nothing.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed itself calls collectives that torch 2.13 declares deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its gradient with a mask may be NaN on H100 and H200 (pytorch#196678); there are two others.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not torch.cuda.is_available():
        # The shared-memory collective would be compiled on first use (half a minute, needs a
        # compiler, and a stale lock hangs for ever); gloo does the same job.
        from deepspeed.ops import __compatible_ops__ as compatible_ops

        compatible_ops["deepspeed_shm_comm"] = False
    if distributed.world_size() > 1:
        # Before it shards a backbone that is being loaded it has to know the job's ranks.
        deepspeed.init_distributed(dist_init_required=False, verbose=False)


def partition_of(settings: dict[str, Any]) -> Partition | None:
    """How a backbone is shared out as it is loaded; None but under ZeRO-3.

    Args:
        settings: What :func:`deepspeed_json` derived.
    """
    if settings["zero_optimization"].get("stage") != 3:
        return None
    prepare()
    import deepspeed

    def share_out(module: torch.nn.Module) -> None:
        deepspeed.zero.Init(module=module, config_dict_or_path=settings)

    return Partition(settings, share_out)


def whole_numel(parameter: torch.nn.Parameter) -> int:
    """Numbers in a parameter, those in the shards of other ranks too."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def initialize(
    module: Forecaster, config: RunConfig, settings: dict[str, Any], total_steps: int
) -> "Engine":
    """Wrap a module for training; collective. It is moved to this rank's device and cast.

    Args:
        module: Trained and frozen parameters; only those that require a gradient are optimised.
        config: The run.
        settings: What :func:`deepspeed_json` derived.
        total_steps: Optimizer steps of the whole run, for the learning-rate schedule.
    """
    progress.enter("starting DeepSpeed", patience=3)
    prepare()
    import deepspeed

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_schedule(optimizer, config.train, total_steps)

    _prepare_unshared(module)
    engine, _, _, _ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(module, config.train),
        lr_scheduler=schedule,
        config=settings,
        dist_init_required=False,
    )
    engine_state.undo_first_step(engine)
    distributed.set_timeouts(config.train.collective_timeout_s)
    return Engine(engine)


def _prepare_unshared(module: Forecaster) -> None:
    """Cast what ZeRO-3 has not shared out yet, and move to this rank's device what it never will.

    DeepSpeed casts and moves a module, but not one of which some parameters are shared out already.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        return
    dtype = module.backbone.dtype
    for parameter in module.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)  # the same object: the optimizer knows it
    device = distributed.device()
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(device))
    for parameter in module.parameters():
        scales = getattr(parameter, "quant_state", None)
        if scales is not None:
            scales.to(device)


class Engine:
    """The few things a training loop needs of DeepSpeed."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @property
    def module(self) -> Forecaster:
        """The wrapped module. Under ZeRO-3 its parameters are empty between forwards."""
        module: Forecaster = self._engine.module
        return module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self._engine.get_lr()[0])

    @property
    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping; None where DeepSpeed made none."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def __call__(self, *args: Any) -> Any:
        """Run the module forward; collective under ZeRO-3."""
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch; collective at the last of a step.

        Those of a loss that is not finite are not either, on any rank: the step is left out.
        """
        # The loss itself where it is finite; else NaN also where its derivative would be finite.
        self._engine.backward(loss * (1 + 0 * loss.detach()))

    def step(self) -> bool:
        """Count one micro-batch; update the parameters after the last of a step. Collective.

        Returns:
            Whether the parameters may have changed. False after the last micro-batch of a step:
            a gradient was not finite on some rank, and all of them left the step out.
        """
        engine = self._engine
        last = engine.is_gradient_accumulation_boundary()
        if last and engine_state.trains_itself(engine) and not self._gradient_is_finite():
            self._leave_out_step()
            return False
        engine.step()
        return not last or bool(engine.was_step_applied())

    def _leave_out_step(self) -> None:
        """Do for stage 0 in float32, where DeepSpeed looks at no gradient, what other stages do."""
        engine, before = self._engine, self.progress()["scheduler"]
        for parameter in self.module.parameters():
            parameter.grad = None  # AdamW leaves out what has none
        engine.clip_fp32_gradients = lambda: None  # fails where there are none
        try:
            engine.step()
        finally:
            del engine.clip_fp32_gradients
        engine_state.load_schedule(engine, before)
        engine.skipped_steps += 1

    def _gradient_is_finite(self) -> bool:
        """Whether every gradient of a whole (stage 0) model is; the ranks have the same."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        return bool(torch.stack(norms).isfinite().all()) if norms else True

    def trained_parameters(self, prefix: str = "") -> dict[str, Tensor]:
        """Copy trained parameters in full and in float32, on the CPU; collective.

        Args:
            prefix: Only those whose name begins so.
        """
        return engine_state.weights(self._engine, prefix)

    def trained_names(self) -> list[str]:
        """Names of the parameters that are optimised."""
        return list(engine_state.named_trained(self.module))

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copy what AdamW keeps, see :func:`engine_state.optimizer_state`; collective."""
        return engine_state.optimizer_state(self._engine)

    def progress(self) -> dict[str, Any]:
        """Counters, learning rate and loss scale as plain JSON values. Not collective."""
        return engine_state.progress(self._engine)

    def resume(
        self,
        weights: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        progress: dict[str, Any],
        *,
        micro_steps: int,
    ) -> None:
        """Go on where a checkpoint was made, on any number of ranks at any stage; collective.

        Args:
            weights: What :meth:`trained_parameters` returned.
            optimizer: What :meth:`optimizer_state` returned on the main rank.
            progress: What :meth:`progress` returned.
            micro_steps: Micro-batches that this rank would have done by then.
        """
        engine_state.load(self._engine, weights, optimizer)
        counters = progress["counters"] | {"micro_steps": micro_steps}
        engine_state.load_progress(self._engine, progress | {"counters": counters})

    def warm_start(
        self, take_over: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    ) -> list[str]:
        """Begin with other weights, and a fresh optimizer; collective.

        Args:
            take_over: Makes the weights to begin with of the ones that are there, and says in
                words what it did; the same on every rank.
        """
        weights, told = take_over(self.trained_parameters())
        engine_state.load(self._engine, weights, {})
        return told

    def load_trained_parameters(self, state: dict[str, Tensor]) -> None:
        """Put parameters back into the module for evaluation; collective.

        The optimizer's own copies stay as they are, so training must not go on afterwards.

        Args:
            state: What :meth:`trained_parameters` returned.
        """
        engine_state.load_weights(self._engine, state)

    def optimizer_bytes(self) -> int:
        """Count what the optimizer keeps on this rank: its state, and its copies of parameters."""
        optimizer = self._engine.basic_optimizer
        own = {id(parameter) for parameter in self.module.parameters()}
        # ZeRO-3 hands its copies over for the update alone; in float32 they are the weights.
        zero = getattr(self._engine, "optimizer", None)
        own |= {id(part) for part in getattr(zero, "fp16_partitioned_groups_flat", [])}
        copies = [p for group in optimizer.param_groups for p in group["params"]]
        copies += getattr(zero, "fp32_partitioned_groups_flat", [])
        kept = [part for part in {id(p): p for p in copies}.values() if id(part) not in own]
        kept += [
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return sum(value.numel() * value.element_size() for value in kept)

    def close(self) -> None:
        """Release what DeepSpeed holds."""
        self._engine.destroy()


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = _merge(known, value)
        else:
            merged[key] = value
    return merged
