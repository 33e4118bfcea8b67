"""A step whose gradient was not finite: who was in it, and whether the run goes on.

DeepSpeed and :class:`dist_train.engine.Engine` leave such a step out, on all ranks alike, so the
weights stay as they were. What is left is to say which windows did it.
"""

import json
import math
import sys
from typing import Any

import torch
from torch import Tensor

from dist_train import distributed
from dist_train.config import RunConfig
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData
from dist_train.training_state import TrainingState

FILE = "nonfinite.jsonl"

MOST_IN_A_ROW = 10
"""Steps left out one after the other that end a run with ``train.on_nonfinite=skip`` too."""


class NonFiniteSteps:
    """Counts the steps that were left out, and writes their windows down."""

    def __init__(self, config: RunConfig, data: ForecastData, *, scales_loss: bool) -> None:
        self._config, self._data, self._scales_loss = config, data, scales_loss

    def left_out(
        self, state: TrainingState, batches: list[WindowBatch], losses: list[Tensor]
    ) -> None:
        """Take note of a step that was left out; collective.

        Args:
            state: Its counts are raised.
            batches: The micro-batches of this rank.
            losses: Their losses, scalars.

        Raises:
            FloatingPointError: ``train.on_nonfinite`` is stop, or there were too many in a row.
        """
        finite = [bool(torch.isfinite(loss)) for loss in losses]
        if self._scales_loss and not distributed.any_rank(not all(finite)):
            return  # fp16: the loss scale was too high, DeepSpeed lowers it
        state.left_out += 1
        state.left_out_in_a_row += 1
        step = state.step + 1
        mine = [
            {"rank": distributed.rank(), "loss": str(float(loss)), "windows": self._windows(batch)}
            for batch, loss in zip(batches, losses, strict=True)
        ]
        # Without a loss to blame, an operation of the backward pass did it: name all windows.
        blamed = [entry for entry, well in zip(mine, finite, strict=True) if not well]
        of_ranks: list[Any] = distributed.gather_objects((blamed, mine))
        culprits = [entry for bad, _ in of_ranks for entry in bad]
        culprits = culprits or [entry for _, every in of_ranks for entry in every]
        with distributed.agree_or_raise("Writing down the windows of a step that was left out"):
            if distributed.is_main_rank():
                self._write(step, culprits)
        if self._config.train.on_nonfinite == "stop" or state.left_out_in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(self._message(state, step, culprits))

    def _windows(self, batch: WindowBatch) -> list[dict[str, Any]]:
        """Number, series and first row of each window of a batch."""
        ids = batch.window_ids.cpu().numpy()
        series, starts = self._data.windows["train"].locate_batch(ids)
        names = [item.id for item in self._data.series_set.series]
        return [
            {"window": int(number), "series": names[int(which)], "row": int(start)}
            for number, which, start in zip(ids, series, starts, strict=True)
        ]

    def _write(self, step: int, culprits: list[dict[str, Any]]) -> None:
        path = self._config.run_folder / FILE
        with path.open("a", encoding="utf-8") as file:
            for entry in culprits:
                file.write(json.dumps({"step": step, **entry}) + "\n")
        if self._config.train.on_nonfinite == "skip":
            sys.stderr.write(
                f"warning: step {step} was left out, its loss or gradient is not finite; "
                f"its windows are in {path}\n"
            )

    def _message(self, state: TrainingState, step: int, culprits: list[dict[str, Any]]) -> str:
        numbers = [str(window["window"]) for entry in culprits for window in entry["windows"]]
        shown = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
        ranks = sorted({entry["rank"] for entry in culprits})
        loss, path = culprits[0]["loss"], self._config.run_folder / FILE
        what = f"training loss is {loss}"
        if math.isfinite(float(loss)):
            what = f"gradient of a training loss of {loss} is not finite"
        again = (
            f" It is number {state.left_out_in_a_row} in a row."
            if state.left_out_in_a_row > 1
            else ""
        )
        return (
            f"The {what} in step {step}, on rank {', '.join(map(str, ranks))}, windows {shown} "
            f"(all in {path}); the weights are as they were before it.{again} Look at these "
            f"windows, lower train.learning_rate={self._config.train.learning_rate}, use "
            "train.precision=fp32, or leave such steps out with train.on_nonfinite=skip."
        )
