"""One run on the ranks of the process group: prepare or resume, fit, score, report."""

import dataclasses
import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_train import (
    calibration,
    checkpoint_writer,
    closed_form,
    distributed,
    engine,
    leak_alarm,
    opening,
    precision,
    progress,
    report,
    resume,
    run_folder,
    stop_signals,
    terminal,
    training_state,
)
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.checkpoint import Checkpoint, CheckpointError
from dist_train.checkpoint_writer import BEST, CheckpointWriter
from dist_train.config import RunConfig, config_to_dict, config_to_yaml, count_steps
from dist_train.data.config import DataError
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData
from dist_train.leak_alarm import LeakError
from dist_train.memory_account import account
from dist_train.memory_build import bank_root
from dist_train.metric_catalog import TABLE
from dist_train.metrics import Scores
from dist_train.outcome import measure, result_of, write
from dist_train.preflight import Preflight, identity
from dist_train.profiler import build_profiler
from dist_train.reproducibility import code_fingerprint, environment, seed_everything
from dist_train.resume import Resumption
from dist_train.retrieval import Retriever
from dist_train.run_folder import step_name
from dist_train.score_table import table_rows
from dist_train.throughput import Throughput
from dist_train.tracking import FILE as METRICS_FILE
from dist_train.tracking import WAIT_FOR_WANDB_S, Tracker
from dist_train.trainer import Trainer
from dist_train.training_state import TrainingState
from dist_train.wandb_identity import ID_FILE
from dist_train.wandb_run import WandbRun
from memory_index import atomic_file
from memory_index.atomic_file import write_text
from model.backbone_files import fingerprint
from model.forecaster import Forecaster
from model.warm_start import take_over

REPLACED = (
    "config.yaml", "environment.json", "deepspeed.json", METRICS_FILE, ID_FILE, calibration.FILE,
    report.REPORT_FILE, report.FIGURE_FILE, run_folder.RESULT_FILE, run_folder.STOPPED_FILE,
    run_folder.ERRORS_FILE,
)  # fmt: skip
"""Files of a run's folder that are written beside their place first."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What the command line said about going on."""

    where: str
    """auto, or the path of a checkpoint or of a run."""

    counter: int | None = None
    """Validations without improvement so far; None: the checkpoint's."""


def train_and_score(
    config: RunConfig, checked: Preflight, wanted: Resume | None = None
) -> dict[str, Any]:
    """Train and score what has been checked; collective.

    Args:
        config: The run; its folder is new, unless it is resumed.
        checked: Its data and backbone.
        wanted: Where to go on; None: a new run.

    Returns:
        What ``result.json`` holds, on every rank.

    Raises:
        FloatingPointError: The loss is not finite.
        LeakError: The memory shows windows their own futures.
        CheckpointError: There is none to go on from, or it belongs to something else.
        StopRequestedError: A signal asked to stop; a checkpoint has been saved if it trained.
    """
    data, files, folder = checked.data, checked.backbone_files, config.run_folder
    main = distributed.is_main_rank()
    run_identity = identity(config, checked, distributed.world_size())
    # May still refuse: before the folder, so that the name is not taken by a run that never began.
    prompt_builder = build_prompt_builder(config, files, data.descriptions)
    progress.enter("opening the run", patience=3)
    resumption = None if wanted is None else resume.choose(config, wanted.where)
    with ExitStack() as held:
        with distributed.agree_or_raise("Opening the run folder"):
            if resumption is not None:
                _check_fits(resumption.checkpoint, checked)
                if resumption.is_exact:
                    _check_same_data(resumption.checkpoint, checked.data)
            if main:
                held.enter_context(run_folder.locked(folder))
                _open_folder(folder, config, resumption)
        run = _Run(config, checked, prompt_builder, resumption, wanted, held)
        try:
            return run.train(run_identity)
        except stop_signals.StopRequestedError:
            run.leave_memory()
            raise
        except (FloatingPointError, LeakError) as error:  # on all ranks alike
            run.leave_memory()
            run.close_tracker(error)
            raise


class _Run:
    """The steps of :func:`train_and_score` once the folder is this run's."""

    def __init__(
        self,
        config: RunConfig,
        checked: Preflight,
        prompt_builder: Any,
        resumption: Resumption | None,
        wanted: Resume | None,
        held: ExitStack,
    ) -> None:
        self.held, self.tracker = held, Tracker(config.run_folder, enabled=False)
        self.retriever: Retriever | None = None
        self.config, self.data, self.files = config, checked.data, checked.backbone_files
        self.prompt_builder, self.resumption, self.wanted = prompt_builder, resumption, wanted
        self.folder, self.main = config.run_folder, distributed.is_main_rank()
        exact = resumption is not None and resumption.is_exact
        self.known = resumption.checkpoint if resumption is not None and exact else None
        self.dtype = precision.resolve_dtype(config.train.precision)
        if self.known is not None and config.train.precision == "auto":
            self.dtype = precision.DTYPES[self.known.manifest["dtype"]]
        self.settings = engine.deepspeed_json(config, distributed.world_size(), self.dtype)
        # Asked once and first: a checkout may change while the run goes on.
        self.code, self.backbone = code_fingerprint(), fingerprint(self.files)

    def train(self, run_identity: str) -> dict[str, Any]:
        """Do it all; collective."""
        if self.main:
            write_text(self.folder / "deepspeed.json", json.dumps(self.settings, indent=2))
            world_size = distributed.world_size()
            self._say(opening.opening(self.config, self.data, world_size, self.dtype))
            self._say(*_opening_of(self.resumption, self.code))
        banks = bank_root(self.folder)
        if self.known is not None:
            closed, ridge_val_mse = closed_form.unpack(
                self.known.closed_form, self.known.training["closed_form"]
            )
            config = _decided(self.config, self.known)
        else:
            with account.phase("ridge"):
                config, closed = closed_form.solve(self.config, self.data, banks)
        engine.prepare()
        model = build_forecaster(
            config, self.files, self.dtype, self.prompt_builder,
            num_sources=len(self.data.sources), num_variates=self.data.num_variates,
            zero3=engine.partition_of(self.settings),
        )  # fmt: skip
        retriever = None
        if config.gram.use_gram is True:
            retriever = Retriever(self.data, config.gram, config.bank, banks, off=closed.off)
            self.retriever = retriever
            if not retriever.needs_refresh:
                retriever.refresh({})
        if self.known is not None:
            model.load_buffers(self.known.model)
        else:
            ridge_val_mse = closed_form.set_solutions(model, config, self.data, closed, retriever)
        sizes = opening.sizes(model)
        if self.main:
            names = [source.name for source in self.data.sources]
            self._say(opening.parameters(sizes, closed, retriever, names))

        trainer, writer = self._build_trainer(
            config, model, retriever, closed_form.pack(closed, ridge_val_mse)
        )
        with trainer.profiler:
            self._enter_training(trainer)
            with stop_signals.finishing_steps():
                fit = trainer.fit()
                with distributed.agree_or_raise("Saving the best model"):
                    writer.close()
                trainer.restore_best()
                try:
                    outcome = measure(trainer, config, closed)
                except stop_signals.StopRequestedError as request:  # on all ranks alike
                    if (self.folder / step_name(fit.steps)).exists():  # else the disk was full
                        request.step = fit.steps
                    self.close_tracker(request)
                    raise
            trainer.tracker.log(fit.steps, outcome.metrics)

        trainer.engine.close()
        if retriever is not None:
            retriever.close()
        result = result_of(config, fit, closed, outcome) | {
            "identity": run_identity,
            "ridge_val_mse": ridge_val_mse,
            "trained_parameters": sizes.trained,
            "frozen_parameters": sizes.frozen,
            "data": self.data.series_set.checksum,
            "code": self.code,
            "backbone": self.backbone,
        }
        progress.enter("writing the report", patience=3)
        with distributed.agree_or_raise("Writing the report"):
            if self.main:
                self._say(*write(self.folder, config, self.data, result, outcome))
                self._finish_tracker(fit.steps, result, outcome.scores)
                if not config.checkpoint.save_steps:
                    with suppress(OSError):  # it has its result, whatever stays
                        checkpoint_writer.delete(self.folder / step_name(fit.steps))
        return result

    def leave_memory(self) -> None:
        """End what builds the next memory in the folder, before another job may run there."""
        if self.retriever is not None:
            self.retriever.abandon()

    def close_tracker(self, error: Exception) -> None:
        """Close the run of wandb before any rank ends: a launcher ends the others then."""
        with distributed.agree_or_raise("Closing wandb"):
            self.tracker.close_wandb(error)

    def _finish_tracker(self, step: int, result: dict[str, Any], scores: dict[str, Scores]) -> None:
        """Give wandb what is there at the end, and close it; on the main rank."""
        columns, rows = table_rows(scores)
        names = [*report.FILES, run_folder.RESULT_FILE, calibration.FILE]
        self.tracker.finish(
            step,
            summary={key: value for key, value in result.items() if key != "scores"},
            table=(TABLE, columns, rows),
            report=[self.folder / name for name in names if (self.folder / name).exists()],
            checkpoint=self.folder / BEST,
        )

    def _start_wandb(self, config: RunConfig) -> WandbRun:
        # Less than the others wait in the collective that it is closed in.
        longest_s = config.train.collective_timeout_s - WAIT_FOR_WANDB_S
        wandb = WandbRun(self.folder, config.tracking, longest_upload_s=longest_s)
        if self.main:
            progress.enter("starting wandb", patience=3)
            facts = {
                "code": self.code,
                "environment": environment(),
                "ranks": distributed.world_size(),
                "dtype": precision.dtype_name(self.dtype),
                "data": {
                    "name": self.data.series_set.name,
                    "checksum": self.data.series_set.checksum,
                },
                "backbone": self.backbone,
                "deepspeed_json": self.settings,
            }
            where = wandb.start(config.name, config_to_dict(config) | {"facts": facts})
            self._say(*([where] if where else []))
        return wandb

    def _say(self, *lines: str) -> None:
        """Tell the reader, on the main rank."""
        if self.main:
            terminal.say(*lines, quiet=self.config.tracking.quiet)

    def _build_trainer(
        self, config: RunConfig, model: Forecaster, retriever: Retriever | None, closed: Any
    ) -> tuple[Trainer, CheckpointWriter]:
        sampler = _build_sampler(config, self.data, self.settings)
        total_steps = count_steps(config.train, sampler.steps_per_epoch)
        if self.known and self.known.training["total_steps"] != total_steps:
            self._say(
                f"note: the run now has {total_steps} steps, not "
                f"{self.known.training['total_steps']}: the learning rate takes another course"
            )
        with account.phase("engine"):
            ds_engine = engine.initialize(model, config, self.settings, total_steps)
        # From here on each rank draws its own dropout; until here all drew the same weights.
        seed_everything(config.train.seed + 1 + distributed.rank())
        state = TrainingState()
        if self.known is not None:
            sampler.load_state_dict(self.known.training["sampler"])
            state = TrainingState.from_json(self.known.training["state"])
            if self.wanted is not None and self.wanted.counter is not None:
                state.counter = self.wanted.counter
        self.tracker = self.held.enter_context(
            Tracker(
                self.folder,
                enabled=self.main,
                resume_at=state.step if self.known else None,
                validates_again=state.validated_step < state.step,
                wandb=self._start_wandb(config),
                watchdog_s=config.train.watchdog_s,
            )
        )
        writer = CheckpointWriter(
            self.folder,
            config_to_yaml(config),
            keep=config.checkpoint.save_total_limit,
            enabled=self.main,
        )
        trainer = Trainer(
            config, ds_engine, self.data, sampler, self.prompt_builder, self.tracker,
            retriever=retriever, total_steps=total_steps, writer=writer, closed_form=closed,
            profiler=build_profiler(config, ds_engine), state=state if self.known else None,
            is_saved=self.known is not None
            and self.known.folder.resolve() == (self.folder / step_name(self.known.step)).resolve(),
            throughput=Throughput(
                config, self.files, self.dtype, device_name=distributed.device_name(),
                common_tokens=len(self.prompt_builder.prefix_ids) if self.prompt_builder else 0,
            ),
            facts={
                "dtype": precision.dtype_name(self.dtype),
                "backbone": {"name": config.backbone.name, "fingerprint": self.backbone},
                "code": self.code,
            },
        )  # fmt: skip
        return trainer, writer

    def _enter_training(self, trainer: Trainer) -> None:
        """Put weights, memory and generators where the training begins, or goes on; collective."""
        retriever, known = trainer.retriever, self.known
        if known is not None:
            steps = trainer.state.step * trainer.sampler.accumulation_steps
            trained = trainer.engine.trained_names()
            trainer.engine.resume(
                {name: known.model[name] for name in trained},
                known.optimizer,
                known.training["engine"],
                micro_steps=steps,
            )
            trainer.restore_memory(known)
            self._find_best(trainer, known)
            before, now = known.training["accumulation_steps"], trainer.sampler.accumulation_steps
            training_state.restore_rank(known.ranks, trainer.state, self.config.train.seed)
            trainer.state.sums.rescale(before, now)
            return
        if self.resumption is not None:
            told = trainer.engine.warm_start(partial(take_over, self.resumption.checkpoint.model))
            self._say(*told)
        if retriever is not None and retriever.needs_refresh:
            trainer.refresh_memory()
        if retriever is not None:
            self._check_for_leaks(retriever)

    def _check_for_leaks(self, retriever: Retriever) -> None:
        leaks = leak_alarm.check_for_leaks(retriever)
        self.tracker.log(
            0,
            {
                "retrieval/train_over_repeat_last": leaks.train_ratio,
                "retrieval/val_over_repeat_last": leaks.val_ratio,
                "retrieval/overlaps": leaks.overlaps,
            },
        )
        text = leak_alarm.message(leaks)
        if leaks.alarm:
            self.tracker.alert("leak ratio", text, "ERROR" if leaks.overlaps else "WARN")
        self._say(text)

    def _find_best(self, trainer: Trainer, known: Checkpoint) -> None:
        """Load the best model so far, which the run ends with unless a better one comes."""
        assert self.resumption is not None
        state, told = trainer.state, ""
        is_best = known.step == state.best_step
        is_best &= (known.manifest["bank"] or "") == state.best_bank  # not swapped after that step
        origin = self.folder if self.resumption.in_place else known.folder.parent
        best, why = resume.load_together(origin / BEST)
        if best is None:
            best = known if is_best else None
            told = "" if is_best else f"{why} The next validation makes another best/."
        elif best.step != state.best_step and best.step <= state.step:
            told = f"its best model, of step {state.best_step}, is not there but an earlier one"
        trainer.adopt_best(best)
        self._say(*([f"warning: {told}"] if told else []))
        if best is not None and not (self.folder / BEST).exists():
            made = {"format", "sha256", "manifest_sha256"}
            facts = {key: value for key, value in best.manifest.items() if key not in made}
            trainer.writer.save(BEST, best, facts)


def _check_fits(checkpoint: Checkpoint, checked: Preflight) -> None:
    """Refuse another backbone than the checkpoint's."""
    expected = checkpoint.manifest["backbone"]["fingerprint"]
    found = fingerprint(checked.backbone_files)
    if found != expected:
        raise CheckpointError(
            f"{checkpoint.folder}: was trained on another backbone (fingerprint {expected[:12]}, "
            f"found {found[:12]}); restore it, or start anew under another --name."
        )


def _check_same_data(checkpoint: Checkpoint, data: ForecastData) -> None:
    found, expected = data.series_set.checksum, checkpoint.series["checksum"]
    if found != expected:
        raise DataError(
            f"{data.series_set.name}: the file is not the one that {checkpoint.folder} was trained "
            f"on (checksum {found[:12]}, expected {expected[:12]}); restore it."
        )


def _decided(config: RunConfig, known: Checkpoint) -> RunConfig:
    """Take over whether the memory is on where the checkpoint's run has decided it."""
    if config.gram.use_gram != "auto":
        return config
    use_gram = resume.load_config_of(known).gram.use_gram
    return dataclasses.replace(config, gram=dataclasses.replace(config.gram, use_gram=use_gram))


def _open_folder(folder: Path, config: RunConfig, resumption: Resumption | None) -> None:
    """Make the folder a run's, or go on in it: nothing that is there is lost."""
    (folder / run_folder.STOPPED_FILE).unlink(missing_ok=True)
    atomic_file.sweep(folder, REPLACED)
    checkpoint_writer.sweep(folder)
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", config_to_yaml(config))
        write_text(folder / "environment.json", json.dumps(environment(), indent=2))
    if resumption is not None:
        if resumption.in_place:
            told = resume.set_aside(folder, resumption)
            terminal.say(*told, quiet=config.tracking.quiet)
        resume.write_down(folder / run_folder.RESUMES_FILE, resumption, environment())


def _opening_of(resumption: Resumption | None, code: str) -> list[str]:
    """Say where a resumed run goes on, and what was passed over."""
    if resumption is None:
        return []
    checkpoint = resumption.checkpoint
    lines = [f"resume: passed over {reason}" for reason in resumption.skipped]
    if resumption.is_exact:
        state = TrainingState.from_json(checkpoint.training["state"])
        lines.append(f"resume: {checkpoint.folder}, {training_state.describe(state)}")
        if checkpoint.manifest.get("code") != code:
            lines.append("note: the code is not the one that saved it; numbers may differ")
        ranks = checkpoint.training["ranks"]
        if ranks != distributed.world_size():
            lines.append(
                f"note: saved on {ranks} rank(s), now {distributed.world_size()}: the same global "
                "batches; dropout draws from other seeds"
            )
    else:
        lines.append(
            f"resume: the weights of {checkpoint.folder} alone, its settings differ: "
            f"{'; '.join(resumption.differing)}"
        )
    return lines


def _build_sampler(
    config: RunConfig, data: ForecastData, settings: dict[str, Any]
) -> GlobalBatchSampler:
    return GlobalBatchSampler(
        len(data.windows["train"]),
        config.train.batch_size,
        settings["train_micro_batch_size_per_gpu"],
        distributed.rank(),
        distributed.world_size(),
        config.train.seed,
        # Without sources the order is that of the runs that are there already.
        mixture=data.mixture(config.data.temperature) if config.data.sources else None,
    )
