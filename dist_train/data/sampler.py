"""Which windows a rank sees, and when. Pure arithmetic: no collective, no torch.

Every rank computes the same permutation and takes its share of it, so the global batches do not
depend on the number of ranks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dist_train.data.mixture import Mixture, MixtureOrder
from dist_train.data.permutation import Ints

STEPS_AT_ONCE = 64
"""Global batches whose windows are worked out together."""


class GlobalBatchSampler:
    """This rank's micro-batches of one epoch, from a settable position on.

    An epoch is a permutation of all windows drawn from (seed, epoch), or a mixture of several
    sources, cut into global batches; an incomplete last one is dropped. Iterating does not move
    the position: a loader reads ahead, so only the training loop knows what was really used. It
    says so with :meth:`set_position`.
    """

    def __init__(
        self,
        num_windows: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        epoch: int = 0,
        start_step: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        """Check that the batch can be shared out.

        Args:
            num_windows: Training windows over all series.
            global_batch_size: Windows of one optimizer step over all ranks.
            micro_batch_size: Windows of one forward on one rank.
            rank: This rank, in [0, world_size).
            world_size: Number of ranks.
            seed: Seed of the order, not negative.
            epoch: Epoch to iterate over, from 0.
            start_step: Global batches of the epoch that are already done.
            mixture: How sources are mixed; None: one source, every window once an epoch.

        Raises:
            ValueError: The sizes do not divide, or there is not one full batch.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}.")
        if seed < 0:
            raise ValueError(f"train.seed must not be negative, got {seed}.")
        if micro_batch_size < 1 or global_batch_size < 1:
            raise ValueError(
                f"train.batch_size={global_batch_size} and train.micro_batch_size="
                f"{micro_batch_size} must be at least 1."
            )
        if global_batch_size % world_size:
            raise ValueError(
                f"train.batch_size={global_batch_size} cannot be shared by world_size="
                f"{world_size} ranks: make it a multiple of world_size."
            )
        if global_batch_size // world_size % micro_batch_size:
            raise ValueError(
                f"train.micro_batch_size={micro_batch_size} does not divide the "
                f"{global_batch_size // world_size} windows of one rank (train.batch_size="
                f"{global_batch_size}, world_size={world_size}): choose a divisor."
            )
        if num_windows < global_batch_size:
            raise ValueError(
                f"train.batch_size={global_batch_size} is more than the {num_windows} training "
                "windows: lower it, or use more data."
            )
        self.num_windows, self.seed = num_windows, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size
        self.mixture = mixture
        self.set_position(epoch, start_step)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return self.num_windows // self.global_batch_size

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one rank in one global batch."""
        return self.global_batch_size // (self.world_size * self.micro_batch_size)

    def set_position(self, epoch: int, step: int) -> None:
        """Say where the next iteration begins.

        Raises:
            ValueError: Negative, or beyond the end of the epoch.
        """
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"the position must be an epoch >= 0 and a step in [0, {self.steps_per_epoch}], "
                f"got epoch {epoch}, step {step}."
            )
        self.epoch, self.start_step = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        share = self.global_batch_size // self.world_size
        own = self.rank * share + np.arange(share)
        for first in range(self.start_step, self.steps_per_epoch, STEPS_AT_ONCE):
            steps = np.arange(first, min(first + STEPS_AT_ONCE, self.steps_per_epoch))
            for windows in order[steps[:, None] * self.global_batch_size + own]:
                for begin in range(0, share, self.micro_batch_size):
                    yield windows[begin : begin + self.micro_batch_size].tolist()

    def _order(self) -> "Ints | MixtureOrder":
        if self.mixture is not None:
            return MixtureOrder(self.mixture, self.seed, self.epoch)
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.num_windows)

    def __len__(self) -> int:
        """Count the micro-batches from the position to the end of the epoch."""
        return (self.steps_per_epoch - self.start_step) * self.accumulation_steps

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it is only valid for. The world size is not part of it."""
        return {
            "epoch": self.epoch,
            "step": self.start_step,
            "seed": self.seed,
            "num_windows": self.num_windows,
            "global_batch_size": self.global_batch_size,
            **({} if self.mixture is None else {"mixture": [list(part) for part in self.mixture]}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position, on any number of ranks.

        Raises:
            ValueError: It was saved for another order of windows.
        """
        keys = {
            "seed": ("train.seed", self.seed),
            "num_windows": ("number of training windows", self.num_windows),
            "global_batch_size": ("train.batch_size", self.global_batch_size),
        }
        for key, (name, mine) in keys.items():
            if state[key] != mine:
                raise ValueError(
                    f"{name} is {mine}, but the checkpoint's position was saved with "
                    f"{state[key]}: resume with that value, or start a new run."
                )
        saved, own = state.get("mixture"), self.state_dict().get("mixture")
        if saved != own:
            raise ValueError(
                f"data.sources, data.temperature: windows and shares of the sources are {own}, but "
                f"the checkpoint's position was saved with {saved}: resume with those settings, or "
                "start a new run."
            )
        self.set_position(state["epoch"], state["step"])


class EvaluationBatch(NamedTuple):
    """Windows to score together."""

    ids: list[int]
    """Window numbers; those from ``num_valid`` on are repeats that must not be counted."""

    num_valid: int
    """How many count, from the first on; 0 on a rank that has run out of windows."""


class EvaluationSampler:
    """Every window exactly once over all ranks, in as many batches on every rank.

    ZeRO-3 gathers weights in every forward, so a rank that has run out of windows goes on with
    repeats instead of stopping.
    """

    def __init__(self, num_windows: int, batch_size: int, rank: int, world_size: int) -> None:
        """Share the windows out in contiguous ranges.

        Raises:
            ValueError: No windows, a batch size below 1, or a rank outside the world.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}.")
        if num_windows < 1 or batch_size < 1:
            raise ValueError(
                f"num_windows and batch_size must be at least 1, got {num_windows} and "
                f"{batch_size}."
            )
        base, extra = divmod(num_windows, world_size)
        self.begin = rank * base + min(rank, extra)
        self.end = self.begin + base + (rank < extra)
        self.longest_share = base + (extra > 0)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for offset in range(0, self.longest_share, self.batch_size):
            size = min(self.batch_size, self.longest_share - offset)
            ids = list(range(self.begin + offset, min(self.begin + offset + size, self.end)))
            # Window 0 exists wherever there is a batch at all.
            repeats = [ids[-1] if ids else 0] * (size - len(ids))
            yield EvaluationBatch(ids + repeats, len(ids))

    def __len__(self) -> int:
        return -(-self.longest_share // self.batch_size)
