"""Weights and optimizer state in full, by parameter name: out of the ranks' shares, and back.

DeepSpeed's own checkpoints fit one ZeRO stage and one number of ranks. What is trained here is
small, so it is gathered whole, and can be shared out anew over any number of ranks at any stage.

Three kinds of engine hold it differently: stage 0 in float32 trains the parameters themselves;
stage 0 in bf16 or fp16 has a float32 master beside each; stages 1 to 3 have flat shares of masters.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import distributed

# What AdamW keeps; a name in a checkpoint is moment.parameter.
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def named_trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are optimised, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def undo_first_step(engine: Any) -> None:
    """Give stage 0 in bf16 or fp16 a fresh optimizer. Not collective.

    To make room for its state DeepSpeed (0.19.8) does a step without gradients there: the masters
    have decayed once, and Adam counts one step too many for the rest of the run.
    """
    if engine.zero_optimization_stage() == 0 and not trains_itself(engine):
        wrapper = engine.optimizer
        for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for parameter, master in zip(low, high, strict=True):
                master.data.copy_(parameter.data)
        engine.basic_optimizer.state.clear()


def weights(engine: Any, prefix: str = "") -> dict[str, Tensor]:
    """Copy trained parameters in full and in float32, on the CPU; collective.

    Args:
        engine: DeepSpeed's.
        prefix: Only those whose name begins so.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    masters = _whole_masters(engine)
    full: dict[str, Tensor] = {}
    for name, parameter in named_trained(engine.module).items():
        if name.startswith(prefix):
            master = masters.get(name)
            if master is None:
                master = safe_get_full_fp32_param(parameter)
            full[name] = _copy(parameter if master is None else master)
    return full


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Copy what AdamW keeps of each parameter, in full, on the CPU; collective.

    Returns:
        ``exp_avg.<name>`` and ``exp_avg_sq.<name>`` of the parameter's shape, ``step.<name>`` of
        shape (), all float32; on the main rank, empty on the others, and for parameters that have
        had no step.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    base = engine.basic_optimizer
    keep = distributed.is_main_rank()
    full: dict[str, Tensor] = {}
    if engine.zero_optimization_stage() == 0:
        for name, master in _whole_masters(engine).items():
            for key, value in base.state.get(master, {}).items():
                if keep:
                    full[f"{key}.{name}"] = _copy(value)
        return full
    steps = [state[STEP] for state in base.state.values() if STEP in state]
    if not steps:
        return {}
    _link_shares(engine)
    for name, parameter in named_trained(engine.module).items():
        for key in MOMENTS:
            value = safe_get_full_optimizer_state(parameter, key)
            if keep:
                full[f"{key}.{name}"] = _copy(value).reshape(_whole_shape(parameter))
        if keep:
            full[f"{STEP}.{name}"] = _copy(steps[0])
    return full


def load(engine: Any, values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Take over weights and optimizer state; collective. Equal arguments on every rank.

    Args:
        engine: DeepSpeed's; it has done no step yet.
        values: What :func:`weights` gave, on any number of ranks at any stage.
        state: What :func:`optimizer_state` gave on the main rank; empty: a fresh optimizer.
    """
    load_weights(engine, values)
    if engine.zero_optimization_stage() == 0:
        _load_whole(engine, values, state)
    else:
        _load_shares(engine, values, state)


def load_weights(engine: Any, values: Mapping[str, Tensor]) -> None:
    """Put weights into the module, not into the optimizer's own copies; collective."""
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    for name, parameter in named_trained(engine.module).items():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned):
            if not partitioned or distributed.is_main_rank():
                with torch.no_grad():
                    parameter.copy_(values[name])


def progress(engine: Any) -> dict[str, Any]:
    """Counters, course of the learning rate and loss scale, as plain JSON values."""
    schedule = engine.lr_scheduler
    return {
        "counters": {name: getattr(engine, name) for name in _COUNTERS},
        "scheduler": {
            "last_epoch": schedule.last_epoch,
            "step_count": schedule._step_count,
            "learning_rates": [float(group["lr"]) for group in engine.optimizer.param_groups],
        },
        "scaler": {
            name: getattr(holder, name)
            for holder in _scalers(engine)
            for name in _SCALER
            if isinstance(getattr(holder, name, None), (int, float))
        },
    }


def load_progress(engine: Any, known: Mapping[str, Any]) -> None:
    """Take over what :func:`progress` gave. Not collective."""
    for name, value in known["counters"].items():
        setattr(engine, name, value)
    load_schedule(engine, known["scheduler"])
    for holder in _scalers(engine):
        for name, value in known["scaler"].items():
            if hasattr(holder, name):
                setattr(holder, name, value)


def load_schedule(engine: Any, course: Mapping[str, Any]) -> None:
    """Take over the course of the learning rate alone. Not collective."""
    schedule = engine.lr_scheduler
    schedule.last_epoch, schedule._step_count = course["last_epoch"], course["step_count"]
    rates = list(course["learning_rates"])
    holders = (engine.optimizer, engine.basic_optimizer, schedule.optimizer)
    for optimizer in {id(holder): holder for holder in holders}.values():
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    schedule._last_lr = rates


def trains_itself(engine: Any) -> bool:
    """Whether the parameters themselves are what the optimizer trains: stage 0 in float32."""
    is_whole: bool = engine.zero_optimization_stage() == 0
    return is_whole and engine.optimizer is engine.basic_optimizer


def _load_whole(engine: Any, values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Stage 0: a master, and its state, for each parameter."""
    base = engine.basic_optimizer
    for name, master in _whole_masters(engine).items():
        with torch.no_grad():
            master.copy_(values[name])
        if f"{STEP}.{name}" in state:
            base.state[master] = {
                STEP: _step_tensor(master, state[f"{STEP}.{name}"]),
                **{key: state[f"{key}.{name}"].to(master.device, copy=True) for key in MOMENTS},
            }


def _load_shares(engine: Any, values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Stages 1 to 3: this rank's share of the flat masters and of their state."""
    base, steps = engine.basic_optimizer, [v for k, v in state.items() if k.startswith(f"{STEP}.")]
    if steps:
        latest = torch.stack(steps).max()
        for flat in _flat_masters(engine):
            base.state[flat] = {
                STEP: _step_tensor(flat, latest),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        _link_shares(engine)
    for name, parameter in named_trained(engine.module).items():
        wanted: dict[str | None, Tensor] = {None: values[name]}
        for moment in MOMENTS if steps else ():
            wanted[moment] = state.get(f"{moment}.{name}", torch.zeros_like(values[name]))
        for key, value in wanted.items():
            _set_share(engine, parameter, value.to(distributed.device()), key)


def _set_share(engine: Any, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Write this rank's part of a master (key None) or of its state."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if engine.zero_optimization_stage() == 3:
        # DeepSpeed's own cannot set what does not divide over the ranks: the last share is padded.
        wrapper = engine.optimizer
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        rank = wrapper._get_param_partition_rank(parameter)
        flat = nn.functional.pad(value.flatten(), (0, size * (rank + 1)))
        wrapper.set_local_hp_param(flat.narrow(0, size * rank, size), parameter, key)
    elif key is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _whole_masters(engine: Any) -> dict[str, Tensor]:
    """Stage 0: what the optimizer trains, by parameter name; else nothing."""
    if engine.zero_optimization_stage() != 0:
        return {}
    trained = named_trained(engine.module)
    if trains_itself(engine):
        return dict(trained)
    wrapper = engine.optimizer
    pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    masters = {id(p): m for low, high in pairs for p, m in zip(low, high, strict=True)}
    return {name: masters[id(parameter)] for name, parameter in trained.items()}


def _flat_masters(engine: Any) -> Iterator[Tensor]:
    wrapper = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        yield from wrapper.fp32_partitioned_groups_flat
    else:
        yield from wrapper.single_partition_of_fp32_groups


def _link_shares(engine: Any) -> None:
    """Stages 1 and 2: let every parameter find its part of the flat state.

    DeepSpeed (0.19.8) does so once, after the first group's first step, when the others have none.
    """
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _scalers(engine: Any) -> list[Any]:
    """Objects that hold the state of a dynamic loss scale."""
    wrapper = engine.optimizer
    names = ("loss_scaler", "loss_scale_config")
    return [getattr(wrapper, name) for name in names if hasattr(wrapper, name)]


def _step_tensor(master: Tensor, step: Tensor) -> Tensor:
    # As AdamW with fused=True keeps it: on the device of what it trains.
    return step.detach().to(master.device, torch.float32, copy=True).reshape(())


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()
