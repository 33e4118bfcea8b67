"""The training loop: what happens in a step, and every so many steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dist_train import distributed, forecast_panel, histograms, progress, stop_signals
from dist_train.checkpoint import Checkpoint, Content, check_is_finite
from dist_train.checkpoint_writer import BEST, CheckpointWriter
from dist_train.config import RunConfig
from dist_train.conformal import Calibration
from dist_train.data.collate import WindowBatch
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData
from dist_train.engine import Engine
from dist_train.evaluation import score_split, selection_mse
from dist_train.memory_account import account
from dist_train.node_stats import NodeMeter, peak_device_gib, peak_rss_gib
from dist_train.nonfinite import NonFiniteSteps
from dist_train.objective import TrainingSums, Work, loss_terms
from dist_train.profiler import NoProfiler
from dist_train.retrieval import Retriever
from dist_train.run_folder import step_name
from dist_train.selection import gain_in_standard_errors, may_replace, selection_blocks
from dist_train.series_facts import describe
from dist_train.step_feed import Neighbours, RefreshSchedule, micro_batches, with_neighbours
from dist_train.stop_signals import StopRequestedError
from dist_train.stopwatch import Stopwatch
from dist_train.terminal import TrainingBar
from dist_train.throughput import Throughput
from dist_train.tracking import Tracker
from dist_train.training_state import TrainingState, gather_ranks
from dist_train.window_errors import WindowErrors
from model.batch import RetrievedWindows
from model.losses import total_loss

MEMORY_PHASES = {
    "retrieval wait": "search",
    "forward": "forward",
    "loss": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "refresh": "bank",
    "checkpoint": "checkpoint",
}
"""What the parts of a step are to the account of memory; validation says so itself."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a training went."""

    steps: int
    """Optimizer steps done."""

    best_step: int
    """Step of the best model, see ``train.selection``; 0 is the model before training."""

    best_val_mse: float
    """Its standardised MSE on the windows of model selection."""

    train_s: float
    """Seconds of training, validation and saving included."""

    windows_per_s: float
    """Training windows per second, validation excluded."""

    peak_rss_gib: float
    """Largest resident memory of any rank, in GiB."""

    peak_device_gib: float | None
    """Largest GPU memory that torch has held on any rank, in GiB; None on a CPU."""


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
        throughput: Throughput,
        facts: dict[str, Any],
        writer: CheckpointWriter,
        profiler: NoProfiler | None = None,
        state: TrainingState | None = None,
        is_saved: bool = False,
        closed_form: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    ) -> None:
        """Take what a run has built.

        Args:
            config: The run.
            engine: The model to train.
            data: Where the windows come from.
            sampler: Which of them, and when.
            prompt_builder: Writes the prompts; None: no prompts.
            tracker: Gets the metrics.
            retriever: The memory; None: none.
            total_steps: Optimizer steps of the whole run.
            facts: Written into the manifest of every checkpoint.
            writer: Saves them.
            profiler: Told what the time is spent on.
            state: Where to go on; None: at the beginning.
            is_saved: Whether a ``step_<n>`` of the run holds that state already.
            closed_form: Tensors and facts of the ridges, kept in every checkpoint.
            throughput: Counts the work of the steps.
        """
        self.config = config
        self.engine = engine
        self.data = data
        self.sampler = sampler
        self.prompt_builder = prompt_builder
        self.tracker = tracker
        self.retriever = retriever
        self.total_steps = total_steps
        self.facts = facts
        self.writer = writer
        self.profiler = profiler or NoProfiler()
        self.state = state or TrainingState()
        self.best_state: dict[str, Tensor] = {}
        self.best_snapshot: dict[str, Tensor] = {}
        self._closed_form = closed_form or ({}, {})
        self._throughput = throughput
        self._nodes = NodeMeter()
        self._last_val_mse: float | None = None
        self._later_best: Checkpoint | None = None
        self._waited_s = 0.0
        self._memory_next: dict[str, Tensor] = {}  # the encoder of the bank that is being built
        self._saved_at = self._place() if is_saved else None
        self._nonfinite = NonFiniteSteps(config, data, scales_loss=facts.get("dtype") == "fp16")
        self._refreshes = RefreshSchedule(
            config.gram,
            sampler.steps_per_epoch,
            enabled=retriever is not None and retriever.needs_refresh,
        )

    def fit(self) -> FitResult:
        """Train, keeping the parameters that ``train.selection`` finds best in ``best/``.

        Where there is a memory, :meth:`refresh_memory` comes first.

        The model is validated before its first step too: what training starts from, the ridge
        with an anchor, is a candidate like any other.

        Raises:
            FloatingPointError: The loss is not finite, and ``train.on_nonfinite`` is stop.
            StopRequestedError: A signal asked a rank to stop; a checkpoint has been saved.
        """
        started, before_s, state = time.monotonic(), self.state.fit_s, self.state
        bar = self._progress_bar()
        bar.show(best=state.best_val_mse)
        watch = Stopwatch()

        def passed() -> None:
            state.fit_s = before_s + time.monotonic() - started

        done = self._between_steps(watch, bar, passed)
        if not done:
            for batches, neighbours in self._steps_with_neighbours():
                self._train_step(batches, neighbours, state.step)
                state.step += 1
                bar.update()
                if state.step % self.config.train.log_every == 0 or self._is_last(state.step):
                    with self._part("metrics"):
                        self._log(state.step, watch.lap(), bar)
                if self._between_steps(watch, bar, passed):
                    break
        self.profiler.finish()
        bar.close()
        if self.retriever is not None:
            self.retriever.finish_refresh(swap=False, or_keep=True)
            self._memory_next = {}
        if self._later_best is not None:  # its step was done again, and ended elsewhere
            state.best_step = self._later_best.step
            state.best_val_mse = float(self._later_best.manifest["val_mse"])
            state.best_bank = self._later_best.manifest["bank"] or ""
        if self._saved_at != self._place():  # a run that is stopped while it is scored goes on here
            self._save_step()
        passed()
        return FitResult(
            steps=state.step,
            best_step=state.best_step,
            best_val_mse=state.best_val_mse,
            train_s=state.fit_s,
            windows_per_s=state.windows_timed / max(state.train_s, 1e-9),
            peak_rss_gib=peak_rss_gib(),
            peak_device_gib=peak_device_gib(),
        )

    def _between_steps(
        self, watch: Stopwatch, bar: TrainingBar, passed: Callable[[], None]
    ) -> bool:
        """Do what is due after a step, each thing once, also where a run is resumed here.

        Returns:
            Whether the training is over.

        Raises:
            StopRequestedError: As :meth:`fit`.
        """
        state, step = self.state, self.state.step
        try:
            if self._validates_after(step) and state.validated_step < step:
                with watch.paused(), self._part("validation"):
                    passed()
                    self._validate(step)
                    state.validated_step = step
                    bar.show(val_mse=self._last_val_mse, best=state.best_val_mse)
            over = state.counter >= self.config.train.patience or self._is_last(step)
            if not over and state.refreshed_step < step:
                with self._part("refresh"):
                    self._refresh_on_schedule(step)
                state.refreshed_step = step
            self.stop_if_asked()
        except StopRequestedError as request:
            passed()
            if self._saved_at != self._place():
                self._save_step()
            with distributed.agree_or_raise("Saving the checkpoint"):
                saved = self.writer.wait()  # before any rank ends: a launcher ends the others then
                request.step = step if saved else None
                self.tracker.close_wandb(request)
            raise
        if over:
            return True
        every = self.config.checkpoint.save_steps
        if every and step > 0 and step % every == 0 and self._saved_at != self._place():
            with watch.paused(), self._part("checkpoint"):
                passed()
                self._save_step()
        if step > 0:
            with watch.paused():
                self.profiler.step()
        return False

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Say what a block does: to the profile, and with it the watchdog, and to the account."""
        phase = MEMORY_PHASES.get(name)
        with self.profiler.part(name), account.phase(phase) if phase else nullcontext():
            yield

    def _is_last(self, step: int) -> bool:
        return step >= self.total_steps

    def _validates_after(self, step: int) -> bool:
        every = self.config.train.eval_every or self.sampler.steps_per_epoch
        return step % every == 0 or self._is_last(step)

    def stop_if_asked(self) -> None:
        """End the training on all ranks where one was sent a signal; collective.

        Raises:
            StopRequestedError: One was; nothing has been saved for it.
        """
        asked = stop_signals.received()
        if distributed.any_rank(bool(asked)):
            names = [str(name) for name in distributed.gather_objects(asked)]
            raise StopRequestedError(next(name for name in names if name))

    def forecast(self, batch: WindowBatch, split: str) -> Tensor:
        """Forecast a batch of ``data.windows[split]``; collective under ZeRO-3.

        Leaves the model in eval mode.

        Returns:
            Shape (B, H, N), standardised.
        """
        return self.forecast_with_neighbours(batch, split)[0]

    def forecast_with_neighbours(
        self, batch: WindowBatch, split: str
    ) -> tuple[Tensor, RetrievedWindows | None]:
        """Forecast as :meth:`forecast`, and return what was retrieved too; collective likewise."""
        self.engine.module.eval()
        retrieved = None if self.retriever is None else self.retriever.retrieve(batch, split)
        forecast: Tensor = self.engine(batch.inputs, retrieved).forecast
        return forecast, retrieved

    def refresh_memory(self) -> None:
        """Encode the bank with the current encoder; collective."""
        if self.retriever is None:
            return
        self.retriever.refresh(self._encoder_state())

    def restore_memory(self, checkpoint: Checkpoint) -> None:
        """Search the memory that a checkpoint was made with, and build on what it began."""
        if self.retriever is None:
            return
        if self.retriever.needs_refresh:
            self.retriever.refresh(checkpoint.memory)
        if checkpoint.memory_next:
            self._memory_next = checkpoint.memory_next
            self.retriever.start_refresh(checkpoint.memory_next)

    def adopt_best(self, best: Checkpoint | None) -> None:
        """Take the best model so far from a checkpoint; None: forget that there was one.

        It may be a later one than :attr:`state` knows, of steps that are done again now: then it
        stands until the same step makes it anew. Or an earlier one, where a better one could not
        be saved: its numbers take the place of those.
        """
        state = self.state
        if best is None:
            state.best_val_mse, state.best_step, state.best_bank = math.inf, 0, ""
            state.lowest_val_mse = math.inf
            # Validated again, also where it has just been: no training ends without a best model.
            state.validated_step, state.counter = -1, 0
            return
        if best.step <= state.step and best.step != state.best_step:
            state.best_step, state.best_val_mse = best.step, float(best.manifest["val_mse"])
            state.best_bank = best.manifest["bank"] or ""
        self.best_state = {name: best.model[name] for name in self.engine.trained_names()}
        self.best_snapshot = best.memory
        self._later_best = best if best.step > state.step else None

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
            self.retriever.prune({self.state.best_bank})

    def _steps_with_neighbours(self) -> Any:
        return with_neighbours(
            self._steps(),
            self.retriever,
            self._refreshes.swaps_after,
            first_step=self.state.step,
            total_steps=self.total_steps,
        )

    def _steps(self) -> Any:
        return micro_batches(
            self.data.windows["train"],
            self.sampler,
            self.prompt_builder,
            num_workers=self.config.data.num_workers,
            max_epochs=self.config.train.max_epochs,
            first_step=self.state.step,
            profiler=self.profiler,
        )

    def _train_step(
        self, batches: list[WindowBatch], neighbours: Neighbours | None, step: int
    ) -> None:
        progress.enter("step", step + 1)
        part = self._part
        self.engine.module.train()
        losses: list[Tensor] = []
        applied = True
        sums = TrainingSums()
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
                applied = self.engine.step()
            with part("metrics"):
                sums.add(loss, terms, output, retrieved, self._throughput.work_of(batch))
            losses.append(loss.detach())
        every = self.config.tracking.histograms_every
        if every and (step + 1) % every == 0:
            self.tracker.histograms(step + 1, partial(histograms.collect, output, retrieved))
        if applied:
            self.state.left_out_in_a_row = 0
            self.state.sums.merge(sums)
        else:
            before = self.state.left_out
            self._nonfinite.left_out(self.state, batches, losses)
            if self.state.left_out > before == 0:  # the first; train/steps_left_out counts them
                text = f"step {step + 1} was left out, its loss or gradient is not finite"
                self.tracker.alert("loss is not finite", text, "WARN")

    def _refresh_on_schedule(self, step: int) -> None:
        """Begin to encode the memory anew, or take over what was begun; at fixed steps."""
        if self.retriever is None:
            return
        schedule = self._refreshes
        if schedule.begins_after(step) and step + schedule.lag < self.total_steps:
            self._memory_next = self._encoder_state()
            self.retriever.start_refresh(self._memory_next)
        if schedule.swaps_after(step):
            self._memory_next = {}
            if not self.retriever.finish_refresh(or_keep=True):
                return
            self.state.memory_step = step - schedule.lag
            self.retriever.prune({self.state.best_bank, *self.writer.banks()})

    def _log(self, step: int, seconds: float, bar: TrainingBar) -> None:
        state = self.state
        num_steps = state.sums.num_batches // self.sampler.accumulation_steps
        metrics: dict[str, float] = state.sums.reduce() if num_steps else {}
        state.sums = TrainingSums()
        loss = metrics.get("train/loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss is {loss} in steps {step - num_steps + 1} to {step}: lower "
                f"train.learning_rate={self.config.train.learning_rate}, or use "
                "train.precision=fp32."
            )
        windows = num_steps * self.config.train.batch_size
        state.train_s += seconds
        state.windows_timed += windows
        metrics |= {
            "train/learning_rate": self.engine.learning_rate,
            "perf/windows_per_s": round(windows / max(seconds, 1e-9), 2),
            **self._rates(metrics, num_steps, seconds),
            **self._nodes.gather(),
        }
        if (norm := self.engine.gradient_norm) is not None:
            metrics["train/grad_norm"] = norm
        if state.left_out:
            metrics["train/steps_left_out"] = state.left_out
        if self.retriever is not None:
            metrics |= {
                "retrieval/search_ms": 1000 * self.retriever.search_s / max(1, num_steps),
                "retrieval/wait_ms": 1000 * self._waited_s / max(1, num_steps),
                "retrieval/staleness_steps": step - state.memory_step,
            }
            if (weight := self.retriever.shape_weight) is not None:
                metrics["retrieval/shape_weight"] = weight
            self.retriever.search_s, self._waited_s = 0.0, 0.0
        self.tracker.log(step, metrics)
        bar.show(loss=loss, windows_per_s=metrics["perf/windows_per_s"])

    def _rates(self, metrics: dict[str, float], num_steps: int, seconds: float) -> dict[str, float]:
        """Take the work out of the means of a micro-batch, and return its rates."""
        work = Work(*(metrics.pop(f"perf/{name}", 0.0) for name in Work._fields))
        if not num_steps:
            return {}
        ranks = distributed.world_size()
        micro_batches = num_steps * self.sampler.accumulation_steps * ranks
        total = Work(*(amount * micro_batches for amount in work))
        return self._throughput.rates(total, seconds, ranks)

    def _validate(self, step: int) -> None:
        errors = WindowErrors(self.data.windows["val_selection"])
        sums = score_split(
            errors.watch({"model": partial(self.forecast, split="val_selection")}),
            self.data,
            "val_selection",
            batch_size=self.config.train.eval_batch_size,
            prompt_builder=self.prompt_builder,
            num_workers=self.config.data.num_workers,
            between=self.stop_if_asked,
        )
        mse = selection_mse(sums["model"], self.data)
        if not math.isfinite(mse):
            raise FloatingPointError(
                f"The validation error is {mse} after step {step}: lower train.learning_rate="
                f"{self.config.train.learning_rate}, or use train.precision=fp32."
            )
        self._last_val_mse = mse
        state = self.state
        blocks = selection_blocks(errors.gather()["model"], self.data, "val_selection")
        state.first_errors = state.first_errors or blocks
        gain = gain_in_standard_errors(state.first_errors, blocks)
        by_source = {
            f"val/sources/{name}": sums["model"].of_channels(part).mse()
            for name, part in self.data.source_channels().items()
        }
        self.tracker.log(
            step,
            {"val/mse": mse}
            | (by_source if len(by_source) > 1 else {})
            | ({"val/gain_in_se": gain} if step else {}),
        )
        if mse < state.lowest_val_mse:
            state.lowest_val_mse, state.counter = mse, 0
        else:
            state.counter += 1
        # No training ends without a best model: after one that was lost, any is taken.
        may = may_replace(self.config.train.selection, gain, len(blocks))
        if mse < state.best_val_mse and (may or math.isinf(state.best_val_mse)):
            state.best_val_mse, state.best_step = mse, step
            state.validated_step = step
            self._save_best()
        self.draw_panel(step)

    def draw_panel(self, step: int, calibration: Calibration | None = None) -> None:
        """Forecast a few fixed windows and draw them, where anybody takes pictures; collective.

        Args:
            step: Optimizer steps done.
            calibration: Draws intervals; None: none yet.
        """
        count = self.config.tracking.panel_windows
        if not count or not distributed.any_rank(self.tracker.takes_pictures):
            return
        windows = forecast_panel.collect(
            partial(self.forecast_with_neighbours, split=forecast_panel.SPLIT),
            self.data,
            self.prompt_builder,
            count=count,
            batch_size=self.config.train.eval_batch_size,
            anchored=self.config.gram.retrieval_key == "anchored",
            calibration=calibration,
        )
        if self.tracker.takes_pictures:
            best = None if calibration is None else self.state.best_step
            self.tracker.picture(step, partial(forecast_panel.draw, windows, step, best))

    def _save_best(self) -> None:
        if self.retriever is not None:
            self.state.best_bank = self.retriever.live.version
        content, bank = self._content()
        self.best_state = {name: content.model[name] for name in self.engine.trained_names()}
        self.best_snapshot = content.memory
        self._later_best = None
        self.writer.save(BEST, content, self._facts_of_now(bank))

    def _save_step(self) -> None:
        content, bank = self._content()
        self._saved_at = self._place()
        self.writer.save(step_name(self.state.step), content, self._facts_of_now(bank))

    def _place(self) -> tuple[int, ...]:
        """What has been done, of all that is done once: a step, and what is due after it."""
        return self.state.step, self.state.validated_step, self.state.refreshed_step

    def _facts_of_now(self, bank: str) -> dict[str, Any]:
        val_mse = self.state.best_val_mse if math.isfinite(self.state.best_val_mse) else None
        return {**self.facts, "step": self.state.step, "val_mse": val_mse, "bank": bank or None}

    def _content(self) -> tuple[Content, str]:
        """Copy all that a checkpoint holds, and name the bank that is searched; collective."""
        trained = self.engine.trained_parameters()
        optimizer = self.engine.optimizer_state()
        ranks = gather_ranks(self.state.sums)
        snapshot, bank = {}, ""
        if self.retriever is not None:
            snapshot, bank = self.retriever.snapshot(), self.retriever.live.version
        tensors, facts = self._closed_form
        with distributed.agree_or_raise("Saving a checkpoint"):
            buffers = self.engine.module.trained_state_dict()
            buffers = {name: value.cpu() for name, value in buffers.items() if name not in trained}
            content = Content(
                model=trained | buffers,
                memory=snapshot,
                memory_next={name: value.clone() for name, value in self._memory_next.items()},
                optimizer=optimizer,
                closed_form=tensors,
                ranks=ranks,
                training={
                    "state": self.state.to_json(),
                    "engine": self.engine.progress(),
                    "sampler": self._position(),
                    "accumulation_steps": self.sampler.accumulation_steps,
                    "total_steps": self.total_steps,
                    "ranks": distributed.world_size(),
                    "closed_form": facts,
                },
                series=describe(self.data),
            )
            check_is_finite(content)
        return content, bank

    def _position(self) -> dict[str, int]:
        """The sampler's state, at the step that was really done; a loader reads ahead."""
        epoch, step = divmod(self.state.step, self.sampler.steps_per_epoch)
        return {**self.sampler.state_dict(), "epoch": epoch, "step": step}

    def _progress_bar(self) -> TrainingBar:
        return TrainingBar(
            self.total_steps,
            self.state.step,
            shown=distributed.is_main_rank() and not self.config.tracking.quiet,
        )
