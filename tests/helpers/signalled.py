"""One training rank that sends a signal at a chosen moment; a launcher starts it in its place.

    deepspeed --module tests.helpers.signalled --config FILE

``TIMELLM_TEST_SIGNAL`` holds a :class:`Sent` as JSON. The process writes its exit code down in the
folder that it names, since a launcher has one code for all its ranks.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from dist_train import stop_signals

VARIABLE = "TIMELLM_TEST_SIGNAL"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A signal, when, and to whom."""

    folder: str
    """Where the ranks write down their process ids and exit codes."""

    signal: str = ""
    """Its name; empty: none is sent."""

    to: str = ""
    """A rank, all (ranks), launcher (their parent), or runner (the parent of that)."""

    moment: str = "step"
    """start-up, step, validation, or scoring: of the test split, at the end."""

    step: int = 0
    times: int = 1

    def environment(self) -> dict[str, str]:
        """What the ranks are started with."""
        return {VARIABLE: json.dumps(asdict(self))}


def send(sent: Sent) -> None:
    """Send it, in the one process that does."""
    me = os.environ["RANK"]
    if me != (sent.to if sent.to in "01" else "1"):
        return
    folder = Path(sent.folder)
    (folder / "sent").touch()
    launcher = os.getppid()
    runner = int(Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[1])
    targets = {
        "all": [int(path.read_text()) for path in sorted(folder.glob("pid.*"))],
        "launcher": [launcher],
        "runner": [runner],
    }
    for _ in range(sent.times):
        for pid in targets.get(sent.to, [os.getpid()]):
            os.kill(pid, getattr(signal, sent.signal))
        time.sleep(0.5)  # it has come
    if sent.to in ("launcher", "runner"):  # and these have passed it on, or have been missed
        # That of DeepSpeed tells one rank after the other, the next when the first has ended, and
        # kills one that has not after 30 seconds.
        deadline = time.monotonic() + 20
        while not list(folder.glob("heard.*")) and time.monotonic() < deadline:
            time.sleep(0.1)


def note_signal(folder: Path, rank: str) -> None:
    """Write down that this rank has got a signal, as soon as it has."""

    def watch() -> None:
        while not stop_signals.received():
            time.sleep(0.05)
        (folder / f"heard.{rank}").touch()

    threading.Thread(target=watch, daemon=True).start()


def arrange(sent: Sent, patch: pytest.MonkeyPatch) -> None:
    """Send at the moment; count the forecasts of a validation or scoring from then on."""
    from dist_train import session
    from dist_train.trainer import Trainer

    build, train_step, forecast = session.build_forecaster, Trainer._train_step, Trainer.forecast
    split_of, counted = {"validation": "val_selection", "scoring": "test"}, {sent.moment: 0}

    def building(*given: Any, **named: Any) -> Any:
        send(sent)
        return build(*given, **named)

    def step(trainer: Trainer, *given: Any) -> None:
        if trainer.state.step + 1 == sent.step:
            send(sent)
        train_step(trainer, *given)

    def forecasting(trainer: Trainer, batch: Any, split: str) -> Any:
        if split == split_of[sent.moment] and trainer.state.step == sent.step:
            counted[sent.moment] += 1
            if counted[sent.moment] == 2:
                send(sent)
            Path(sent.folder, f"forecasts.{os.environ['RANK']}").write_text(
                str(counted[sent.moment])
            )
        return forecast(trainer, batch, split)

    if sent.moment == "start-up":
        patch.setattr(session, "build_forecaster", building)
    elif sent.moment == "step":
        patch.setattr(Trainer, "_train_step", step)
    elif sent.moment in split_of:
        patch.setattr(Trainer, "forecast", forecasting)


def main() -> int:
    """Train as ``dist_train.train`` does."""
    from dist_train import processes, train

    processes.begin()
    sent = Sent(**json.loads(os.environ[VARIABLE]))
    rank = os.environ["RANK"]
    Path(sent.folder, f"pid.{rank}").write_text(str(os.getpid()))
    note_signal(Path(sent.folder), rank)
    with pytest.MonkeyPatch.context() as patch:
        from tests.helpers.interrupted import quick

        quick(patch)
        if sent.signal:
            arrange(sent, patch)
        code = train.main()
    Path(sent.folder, f"code.{rank}").write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
