"""One training rank that is killed at a chosen moment; started by a launcher in its place.

    deepspeed --module tests.faults.rank --config FILE --resume auto

``TIMELLM_FAULT`` holds what :class:`Fault` says, as JSON. Nothing else of the training is changed:
a thread waits for the moment, and sends SIGKILL to the processes that are meant.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "TIMELLM_FAULT"

MOMENTS = ("start", "step", "save", "bank build", "bank swap", "evaluation")
VICTIMS = ("rank", "all ranks", "launcher")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """When and whom."""

    moment: str
    """One of MOMENTS."""

    victim: str
    """One of VICTIMS; rank: one of the ranks."""

    rank: int
    """The rank that waits for the moment, and that dies where one rank does."""

    occurrence: int
    """How often it has to come first, from 1."""

    delay_s: float
    """How long after it has begun."""

    folder: str
    """Where the ranks leave their process ids."""

    def to_json(self) -> str:
        """What the variable holds."""
        return json.dumps(asdict(self))


def draw_fault(random_numbers: random.Random, world_size: int, folder: Path) -> Fault:
    """Choose a fault; a save happens on the first rank alone."""
    moment = random_numbers.choice(MOMENTS)
    longest = {"start": 6.0, "save": 0.03, "bank swap": 0.02}.get(moment, 0.15)
    return Fault(
        moment=moment,
        victim=random_numbers.choice(VICTIMS),
        rank=0 if moment == "save" else random_numbers.randrange(world_size),
        occurrence=random_numbers.randint(1, 5 if moment == "step" else 2),
        delay_s=random_numbers.uniform(0.0, longest),
        folder=str(folder),
    )


def wait_for(fault: Fault) -> None:
    """Wrap what the moment is, in this process."""
    seen = 0

    def strike() -> None:
        time.sleep(fault.delay_s)
        Path(fault.folder, "struck").touch()
        victims = [os.getpid()]
        if fault.victim == "all ranks":
            victims = [int(path.name[4:]) for path in Path(fault.folder).glob("pid.*")]
            victims.sort(key=lambda pid: pid == os.getpid())  # this one last
        elif fault.victim == "launcher":
            victims = [os.getppid()]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def begun() -> None:
        nonlocal seen
        seen += 1
        if seen == fault.occurrence:
            threading.Thread(target=strike, daemon=True).start()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun()
            return function(*args, **kwargs)

        return call

    if fault.moment == "start":
        seen = fault.occurrence - 1
        begun()
        return
    from dist_train import checkpoint_writer, memory_build, trainer
    from dist_train.retrieval import Retriever

    holder, name = {
        "step": (trainer.Trainer, "_train_step"),
        "save": (checkpoint_writer, "save_checkpoint"),
        "bank build": (memory_build, "build_bank"),
        "bank swap": (Retriever, "finish_refresh"),
        "evaluation": (trainer, "score_split"),
    }[fault.moment]
    setattr(holder, name, wrapped(getattr(holder, name)))


def main() -> int:
    """Train as ``dist_train.train`` does."""
    fault = Fault(**json.loads(os.environ[VARIABLE])) if os.environ.get(VARIABLE) else None
    rank = int(os.environ.get("RANK", "0"))
    if fault is not None:
        Path(fault.folder, f"pid.{os.getpid()}").touch()
    from dist_train import baselines, report, train

    # Neither is looked at, and both take longer than the steps of these small runs.
    baselines.fit_dlinear = lambda data, seed: baselines.repeat_last
    report.draw_figures = lambda *given: {}
    if fault is not None and fault.rank == rank:
        wait_for(fault)
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
