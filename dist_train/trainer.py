"""The training loop: what happens in a step, and every so many steps."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from dist_train.objective import TrainingSums, loss_terms
from dist_train.profiler import NoProfiler
from dist_train.retrieval import Retriever
from dist_train.series_facts import describe
from dist_train.stopwatch import Stopwatch
from dist_train.tracking import Tracker
from model.batch import RetrievedWindows
from model.losses import total_loss


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
        retriever: Retriever | None,
        total_steps: int,
        facts: dict[str, Any],
        profiler: NoProfiler | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.data = data
        self.sampler = sampler
        self.prompt_builder = prompt_builder
        self.tracker = tracker
        self.retriever = retriever
        self.total_steps = total_steps
        self.facts = facts
        self.profiler = profiler or NoProfiler()
        self.best_state: dict[str, Tensor] = {}
        self.best_snapshot: dict[str, Tensor] = {}
        self._best_val_mse, self._best_step, self._bad = math.inf, 0, 0
        self._sums = TrainingSums()
        self._train_s, self._windows_timed = 0.0, 0
        self._best_bank, self._waited_s = "", 0.0
        self._memory_of = 0  # the step whose encoder made the keys

    def fit(self) -> FitResult:
        """Train, keeping the parameters with the lowest validation MSE in ``best/``.

        Where there is a memory, :meth:`refresh_memory` comes first.

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
        watch = Stopwatch()
        for batches, retrieved in self._steps_with_neighbours():
            self._train_step(batches, retrieved, step)
            step += 1
            bar.update()
            if step % self.config.train.log_every == 0 or step == self.total_steps:
                with self.profiler.part("metrics"):
                    self._log(step, watch.lap(), bar)
            if step % eval_every == 0 or step == self.total_steps:
                with watch.paused(), self.profiler.part("validation"):
                    self._validate(step)
                    bar.set_postfix(self._postfix())
                if self._bad >= self.config.train.patience:
                    break
            if step == self.total_steps:
                break
            with self.profiler.part("refresh"):
                self._refresh_on_schedule(step)
            with watch.paused():
                self.profiler.step()
        self.profiler.finish()
        bar.close()
        if self.retriever is not None:
            self.retriever.finish_refresh(swap=False)
        return FitResult(
            steps=step,
            best_step=self._best_step,
            best_val_mse=self._best_val_mse,
            train_s=time.monotonic() - started,
            windows_per_s=self._windows_timed / max(self._train_s, 1e-9),
            peak_rss_gib=peak_rss_gib(),
        )

    def forecast(self, batch: WindowBatch, split: str) -> Tensor:
        """Forecast a batch of ``data.windows[split]``; collective under ZeRO-3.

        Leaves the model in eval mode.

        Returns:
            Shape (B, H, N), standardised.
        """
        self.engine.module.eval()
        retrieved = None if self.retriever is None else self.retriever.retrieve(batch, split)
        forecast: Tensor = self.engine(batch.inputs, retrieved).forecast
        return forecast

    def refresh_memory(self) -> None:
        """Encode the bank with the current encoder; collective."""
        if self.retriever is None:
            return
        self.retriever.refresh(self._encoder_state())

    def _encoder_state(self) -> dict[str, Tensor]:
        assert self.retriever is not None
        prefix = "memory.encoder."
        trained = self.engine.trained_parameters(prefix) if self.retriever.needs_refresh else {}
        return {name.removeprefix(prefix): value for name, value in trained.items()}

    def restore_best(self) -> None:
        """Put the best parameters, and the memory they were validated with, back; collective."""
        self.engine.load_trained_parameters(self.best_state)
        if self.retriever is not None and self.retriever.needs_refresh:
            self.retriever.refresh(self.best_snapshot)
            self.retriever.prune({self._best_bank})

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
            for batch in self.profiler.iterate("data loading", loader):
                batches.append(batch)
                if len(batches) == self.sampler.accumulation_steps:
                    yield batches
                    batches = []

    def _steps_with_neighbours(
        self,
    ) -> Iterator[tuple[list[WindowBatch], list[Future[RetrievedWindows]] | None]]:
        """Each step's micro-batches and their neighbours, searched for while the last one ran.

        Not before the memory is swapped: a step sees the memory that its number says, however fast
        the search is, so a run is the same each time.
        """
        retriever, step = self.retriever, 0
        if retriever is None:
            yield from ((batches, None) for batches in self._steps())
            return
        steps = self._steps()
        batches = next(steps, None)
        ahead: list[Future[RetrievedWindows]] | None = None
        while batches is not None:
            current = ahead or [retriever.retrieve_ahead(batch, "train") for batch in batches]
            following = next(steps, None) if step + 1 < self.total_steps else None
            ahead = None
            if following is not None and not self._swaps_after(step + 1):
                ahead = [retriever.retrieve_ahead(batch, "train") for batch in following]
            yield batches, current
            batches, step = following, step + 1

    def _train_step(
        self,
        batches: list[WindowBatch],
        neighbours: "list[Future[RetrievedWindows]] | None",
        step: int,
    ) -> None:
        part = self.profiler.part
        self.engine.module.train()
        for number, batch in enumerate(batches):
            retrieved = None
            if neighbours is not None:
                asked = time.monotonic()
                with part("retrieval wait"):
                    retrieved = neighbours[number].result()
                self._waited_s += time.monotonic() - asked
            on_device = batch.to(distributed.device())
            with part("forward"):
                output = self.engine(on_device.inputs, retrieved, on_device.target)
            with part("loss"):
                terms = loss_terms(output, on_device.target, retrieved, self.config)
                loss = total_loss(terms, step, self.config.train.warmup_steps)
            with part("backward"):
                self.engine.backward(loss)
            with part("optimizer"):
                self.engine.step()
            with part("metrics"):
                self._sums.add(loss, terms, output)

    def _refresh_on_schedule(self, step: int) -> None:
        """Begin to encode the memory anew, or take over what was begun; at fixed steps."""
        if self.retriever is None:
            return
        if self._refreshes_after(step) and step + self._refresh_lag < self.total_steps:
            self.retriever.start_refresh(self._encoder_state())
        if self._swaps_after(step):
            self.retriever.finish_refresh()
            self._memory_of = step - self._refresh_lag
            self.retriever.prune({self._best_bank})

    @property
    def _refresh_every(self) -> int:
        return self.config.gram.refresh_every or self.sampler.steps_per_epoch

    @property
    def _refresh_lag(self) -> int:
        lag = self.config.gram.refresh_lag
        return min(self._refresh_every // 4 if lag is None else lag, self._refresh_every - 1)

    def _refreshes_after(self, step: int) -> bool:
        """Whether the encoder of this step makes new keys."""
        if self.retriever is None or not self.retriever.needs_refresh:
            return False
        return step > 0 and step % self._refresh_every == 0

    def _swaps_after(self, step: int) -> bool:
        """Whether new keys are searched from the step after this one on."""
        return self._refreshes_after(step - self._refresh_lag)

    def _log(self, step: int, seconds: float, bar: "tqdm[Any]") -> None:
        num_steps = self._sums.num_batches // self.sampler.accumulation_steps
        metrics = self._sums.reduce()
        self._sums = TrainingSums()
        loss = metrics["train/loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss is {loss} in steps {step - num_steps + 1} to {step}: lower "
                f"train.learning_rate={self.config.train.learning_rate}, or use "
                "train.precision=fp32."
            )
        windows = num_steps * self.config.train.batch_size
        self._train_s += seconds
        self._windows_timed += windows
        windows_per_s = windows / max(seconds, 1e-9)
        metrics |= {
            "train/learning_rate": self.engine.learning_rate,
            "perf/windows_per_s": round(windows_per_s, 2),
            "perf/rss_gib": round(peak_rss_gib(), 3),
        }
        if self.retriever is not None:
            metrics |= {
                "retrieval/search_ms": 1000 * self.retriever.search_s / max(1, num_steps),
                "retrieval/wait_ms": 1000 * self._waited_s / max(1, num_steps),
                "retrieval/staleness_steps": step - self._memory_of,
            }
            self.retriever.search_s, self._waited_s = 0.0, 0.0
        self.tracker.log(step, metrics)
        bar.set_postfix({"loss": f"{loss:.4f}", **self._postfix()}, refresh=False)

    def _validate(self, step: int) -> None:
        sums = score_split(
            {"model": partial(self.forecast, split="val_selection")},
            self.data,
            "val_selection",
            batch_size=self.config.train.eval_batch_size,
            prompt_builder=self.prompt_builder,
            num_workers=self.config.data.num_workers,
        )
        mse = sums["model"].mse()
        if not math.isfinite(mse):
            raise FloatingPointError(
                f"The validation error is {mse} after step {step}: lower train.learning_rate="
                f"{self.config.train.learning_rate}, or use train.precision=fp32."
            )
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
            if self.retriever is not None:
                self.best_snapshot = self.retriever.snapshot()
                self._best_bank = self.retriever.live.version
            if distributed.is_main_rank():
                save_checkpoint(
                    self.config.run_folder / "best",
                    state=trained | {name: value.cpu() for name, value in buffers.items()},
                    memory=self.best_snapshot,
                    series=describe(self.data),
                    config=self.config,
                    facts={
                        **self.facts,
                        "step": step,
                        "val_mse": self._best_val_mse,
                        "bank": self._best_bank or None,
                    },
                )

    def _progress_bar(self) -> "tqdm[Any]":
        return tqdm(
            total=self.total_steps,
            disable=not distributed.is_main_rank(),
            unit="step",
            desc="training",
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 20.0,  # in a log file a line now and then
        )

    def _postfix(self) -> dict[str, str]:
        return {"best val mse": f"{self._best_val_mse:.4f}"}


def peak_rss_gib() -> float:
    """Largest resident memory so far of any rank, in GiB; collective."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(float(str(value)) for value in distributed.gather_objects(kib)) / 2**20
