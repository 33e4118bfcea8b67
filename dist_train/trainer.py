"""The training loop: what happens in a step, and every so many steps."""

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dist_train import distributed
from dist_train.checkpoint import save_checkpoint
from dist_train.config import RunConfig
from dist_train.data.collate import WindowBatch, make_loader
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData
from dist_train.engine import Engine
from dist_train.evaluation import score_split
from dist_train.series_facts import describe
from dist_train.tracking import Tracker


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a training went."""

    steps: int
    """Optimizer steps done."""

    best_step: int
    """Step of the lowest validation MSE; 0 is the model before training."""

    best_val_mse: float
    """Standardised MSE on the windows of model selection."""

    train_s: float
    """Seconds of training, validation and saving included."""

    windows_per_s: float
    """Training windows per second, validation excluded."""

    peak_rss_gib: float
    """Largest resident memory of any rank, in GiB."""


class Trainer:
    """Train a forecaster until it stops improving on validation; every method is collective."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        data: ForecastData,
        sampler: GlobalBatchSampler,
        prompt_builder: PromptBuilder | None,
        tracker: Tracker,
        *,
        total_steps: int,
        facts: dict[str, Any],
    ) -> None:
        self.config = config
        self.engine = engine
        self.data = data
        self.sampler = sampler
        self.prompt_builder = prompt_builder
        self.tracker = tracker
        self.total_steps = total_steps
        self.facts = facts
        self.best_state: dict[str, Tensor] = {}
        self._best_val_mse, self._best_step, self._bad = math.inf, 0, 0
        self._losses: list[Tensor] = []
        self._step_s = 0.0

    def fit(self) -> FitResult:
        """Train, keeping the parameters with the lowest validation MSE in ``best/``.

        The model is validated before its first step too: what training starts from, the ridge
        with an anchor, is a candidate like any other.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        started = time.monotonic()
        eval_every = self.config.train.eval_every or self.sampler.steps_per_epoch
        step = 0
        self._validate(step)
        bar = self._progress_bar()
        stop_from = time.monotonic()
        for batches in self._steps():
            self._train_step(batches)
            step += 1
            bar.update()
            if step % self.config.train.log_every == 0 or step == self.total_steps:
                self._log(step, time.monotonic() - stop_from, bar)
                stop_from = time.monotonic()
            if step % eval_every == 0 or step == self.total_steps:
                self._validate(step)
                bar.set_postfix(self._postfix())
                stop_from = time.monotonic()  # the clock of training stands still in evaluation
                if self._bad >= self.config.train.patience:
                    break
            if step == self.total_steps:
                break
        bar.close()
        return FitResult(
            steps=step,
            best_step=self._best_step,
            best_val_mse=self._best_val_mse,
            train_s=time.monotonic() - started,
            windows_per_s=step * self.config.train.batch_size / max(self._step_s, 1e-9),
            peak_rss_gib=peak_rss_gib(),
        )

    def forecast(self, batch: WindowBatch) -> Tensor:
        """Forecast one batch, (B, H, N); collective under ZeRO-3. Leaves the model in eval mode."""
        self.engine.module.eval()
        forecast: Tensor = self.engine(batch.inputs).forecast
        return forecast

    def _steps(self) -> Iterator[list[WindowBatch]]:
        """The micro-batches of one optimizer step after the other, epoch after epoch."""
        for epoch in range(self.config.train.max_epochs):
            self.sampler.set_position(epoch, 0)
            loader = make_loader(
                self.data.windows["train"],
                self.sampler,
                self.prompt_builder,
                self.config.data.num_workers,
            )
            batches: list[WindowBatch] = []
            for batch in loader:
                batches.append(batch)
                if len(batches) == self.sampler.accumulation_steps:
                    yield batches
                    batches = []

    def _train_step(self, batches: list[WindowBatch]) -> None:
        self.engine.module.train()
        total = torch.zeros((), device=distributed.device())
        for batch in batches:
            on_device = batch.to(distributed.device())
            loss = F.mse_loss(self.engine(on_device.inputs).forecast, on_device.target)
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach() / len(batches)
        self._losses.append(total)

    def _log(self, step: int, seconds: float, bar: "tqdm[Any]") -> None:
        losses = distributed.reduce_sum(torch.stack(self._losses)) / distributed.world_size()
        loss = float(losses.mean())
        if not math.isfinite(loss):
            first = step - len(losses) + 1 + int((~losses.isfinite()).nonzero()[0])
            raise FloatingPointError(
                f"The training loss is {loss} from step {first} on: lower train.learning_rate="
                f"{self.config.train.learning_rate}, or use train.precision=fp32."
            )
        self._step_s += seconds
        windows_per_s = len(losses) * self.config.train.batch_size / max(seconds, 1e-9)
        self.tracker.log(
            step,
            {
                "train/loss": loss,
                "train/learning_rate": self.engine.learning_rate,
                "perf/windows_per_s": round(windows_per_s, 2),
                "perf/rss_gib": round(peak_rss_gib(), 3),
            },
        )
        self._losses = []
        bar.set_postfix({"loss": f"{loss:.4f}", **self._postfix()}, refresh=False)

    def _validate(self, step: int) -> None:
        sums = score_split(
            {"model": self.forecast},
            self.data,
            "val_selection",
            batch_size=self.config.train.eval_batch_size,
            prompt_builder=self.prompt_builder,
            num_workers=self.config.data.num_workers,
        )
        mse = sums["model"].mse()
        self.tracker.log(step, {"val/mse": mse})
        if mse < self._best_val_mse:
            self._best_val_mse, self._best_step, self._bad = mse, step, 0
            self._save_best(step)
        else:
            self._bad += 1

    def _save_best(self, step: int) -> None:
        trained = self.engine.trained_parameters()
        with distributed.agree_or_raise("Saving the best checkpoint"):
            buffers = self.engine.module.trained_state_dict()
            buffers = {name: value for name, value in buffers.items() if name not in trained}
            self.best_state = trained
            if distributed.is_main_rank():
                save_checkpoint(
                    self.config.run_folder / "best",
                    state=trained | {name: value.cpu() for name, value in buffers.items()},
                    series=describe(self.data),
                    config=self.config,
                    facts={**self.facts, "step": step, "val_mse": self._best_val_mse},
                )

    def _progress_bar(self) -> "tqdm[Any]":
        return tqdm(
            total=self.total_steps,
            disable=not distributed.is_main_rank(),
            unit="step",
            desc="training",
            dynamic_ncols=True,
            mininterval=1.0,
        )

    def _postfix(self) -> dict[str, str]:
        return {"best val mse": f"{self._best_val_mse:.4f}"}


def peak_rss_gib() -> float:
    """Largest resident memory so far of any rank, in GiB; collective."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(float(str(value)) for value in distributed.gather_objects(kib)) / 2**20
