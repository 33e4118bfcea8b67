"""Where a training is: what the loop counts and remembers, as a checkpoint keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from dist_train import distributed
from dist_train.objective import TrainingSums
from dist_train.reproducibility import random_state, restore_random_state, seed_everything


@dataclass(kw_only=True)
class TrainingState:
    """Changed by the trainer, at the same steps on every rank."""

    step: int = 0
    """Optimizer steps done."""

    best_val_mse: float = math.inf
    """Validation MSE of the best model so far; which one that is, says ``train.selection``."""
    best_step: int = 0
    best_bank: str = ""
    """Version of the bank that the best model was validated with."""

    lowest_val_mse: float = math.inf
    counter: int = 0
    """The lowest validation MSE, and the validations since then."""

    first_errors: list[float] = field(default_factory=list)
    """Validation errors of the model before training, by :func:`selection.block_errors`."""

    validated_step: int = -1
    """The last step after which the model was validated."""

    refreshed_step: int = 0
    """The last step after which it was asked whether the memory is to be encoded anew."""

    memory_step: int = 0
    """The step whose encoder made the keys that are searched."""

    left_out: int = 0
    """Steps left out because of a loss that was not finite, and how many of them in a row."""
    left_out_in_a_row: int = 0

    train_s: float = 0.0
    """Seconds of training, validation left out, and the windows trained on in them."""
    windows_timed: int = 0

    fit_s: float = 0.0
    """Seconds of the whole fit, of earlier starts too."""

    sums: TrainingSums = field(default_factory=TrainingSums)
    """What the log will say about the steps since its last line."""

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, as plain JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        sums: TrainingSums = values.pop("sums")
        for name in ("best_val_mse", "lowest_val_mse"):
            if not math.isfinite(values[name]):
                values[name] = None
        return values | {"sums": {"num_batches": sums.num_batches, "weights": sums.weights}}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> "TrainingState":
        """Make what :meth:`to_json` wrote down; the sums have no tensors yet."""
        values = dict(known)
        sums = TrainingSums(**values.pop("sums"))
        values.setdefault("lowest_val_mse", values["best_val_mse"])  # not yet told apart
        for name in ("best_val_mse", "lowest_val_mse"):
            if values[name] is None:
                values[name] = math.inf
        return cls(**values, sums=sums)


def gather_ranks(sums: TrainingSums) -> dict[str, Tensor]:
    """Collect the random generators and the sums of every rank; collective.

    Returns:
        On every rank, by ``rank/what``.
    """
    own = random_state() | {f"sum.{name}": value for name, value in sums.tensors().items()}
    gathered = distributed.gather_objects({name: value.cpu() for name, value in own.items()})
    return {
        f"{rank}/{name}": value
        for rank, values in enumerate(gathered)
        for name, value in dict(values).items()  # type: ignore[call-overload]
    }


def restore_rank(known: Mapping[str, Tensor], state: TrainingState, seed: int) -> bool:
    """Take over this rank's random generators and sums. Not collective.

    On another number of ranks the sums of all go to the first one, and every rank draws anew
    from a seed of its own.

    Args:
        known: What :func:`gather_ranks` gave.
        state: Its sums get their tensors.
        seed: ``train.seed``.

    Returns:
        Whether the number of ranks is the one that the state was saved on.
    """
    rank, ranks = distributed.rank(), 1 + max(int(name.split("/")[0]) for name in known)
    same = ranks == distributed.world_size()
    by_rank: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for name, value in known.items():
        number, _, what = name.partition("/")
        by_rank[int(number)][what] = value
    if same:
        mine = by_rank[rank]
        restore_random_state(mine)
        sums = {name: value for name, value in mine.items() if name.startswith("sum.")}
    else:
        seed_everything(seed + 1 + rank + 1000 * (1 + state.step))
        names = [name for name in by_rank[0] if name.startswith("sum.")]
        sums = {name: torch.stack([part[name] for part in by_rank]).sum(dim=0) for name in names}
        # The log divides by the number of ranks: a mean over as many again.
        scale = distributed.world_size() / ranks
        sums = {
            name: (value * scale if value.is_floating_point() else value) * int(rank == 0)
            for name, value in sums.items()
        }
    device = distributed.device()
    state.sums.load_tensors({n.removeprefix("sum."): v.to(device) for n, v in sums.items()})
    return same


def describe(state: TrainingState) -> str:
    """Say in words where the training is."""
    best = f"best validation mse {state.best_val_mse:.4f} of step {state.best_step}"
    return f"step {state.step}" + (f", {best}" if math.isfinite(state.best_val_mse) else "")
