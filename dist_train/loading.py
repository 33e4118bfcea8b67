"""Open a finished or unfinished run from its folder.

The series it was trained on are needed only where the run has a memory: they are its entries.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_train import calibration, distributed
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from dist_train.closed_form import sources_off
from dist_train.config import RunConfig, load_saved_config
from dist_train.conformal import Calibration
from dist_train.coverage import TOLD_LEVELS
from dist_train.data.collate import WindowBatch
from dist_train.data.config import DataError
from dist_train.data.dates import Dates, calendar_phase
from dist_train.data.prompts import PromptBuilder
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.memory_build import bank_root
from dist_train.precision import DTYPES
from dist_train.retrieval import Retriever
from dist_train.series_facts import descriptions
from model.backbone_files import BackboneFiles, fingerprint, locate_backbone
from model.batch import ForecastOutput, RetrievedWindows
from model.forecaster import Forecaster

Levels = Sequence[float] | npt.NDArray[Any]
"""Percentages; an array of one dimension."""


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A trained forecaster, ready to forecast on this rank's device."""

    config: RunConfig
    module: Forecaster
    prompt_builder: PromptBuilder | None
    retriever: Retriever | None
    """The memory as it was when the checkpoint was validated; None where the run has none."""

    series: dict[str, Any]
    """What the checkpoint knows of the series: columns, scalers, frequency, description."""

    checksum: str | None = None
    """Checksum of the checkpoint's weights; None in an exported folder."""

    calibration: Calibration | None = None
    """How its intervals are made; None in a run from before, see :meth:`calibrated`."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The trained weights as they were loaded, on the CPU: those calibrated for."""

    def forecast(self, batch: WindowBatch, split: str) -> Tensor:
        """Forecast a batch of a split of the run's own data. Returns (B, H, N), standardised."""
        retrieved = None if self.retriever is None else self.retriever.retrieve(batch, split)
        return self.output_with(batch, retrieved).forecast

    def output_with(self, batch: WindowBatch, retrieved: RetrievedWindows | None) -> ForecastOutput:
        """Forecast any batch, and keep what else the model says."""
        device = self.device
        if retrieved is not None:
            retrieved = retrieved.to(device)
        with torch.no_grad():
            output: ForecastOutput = self.module(batch.to(device).inputs, retrieved)
        return output

    def batch_of(
        self,
        context: npt.NDArray[np.float32],
        last_dates: Dates | None = None,
        sources: Sequence[int] = (),
    ) -> WindowBatch:
        """Make a batch of windows of no split, with their prompts.

        Args:
            context: Standardised. Shape (B, L, N).
            last_dates: Time stamp of each one's last row. Shape (B,); None: not known.
            sources: Number of each one's source. B of them; none: all of the first.
        """
        prompts = None if self.prompt_builder is None else self.prompt_builder(context, sources)
        size, _, num_variates = context.shape
        return WindowBatch(
            context=torch.from_numpy(context),
            target=torch.zeros(size, self.config.data.pred_len, num_variates),
            window_ids=torch.zeros(size, dtype=torch.int64),
            num_valid=size,
            prompt_ids=None if prompts is None else prompts[0],
            prompt_mask=None if prompts is None else prompts[1],
            calendar_phase=None
            if last_dates is None
            else torch.from_numpy(calendar_phase(last_dates)),
            sources=torch.tensor(list(sources) or [0] * size),
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def is_changed(self) -> bool:
        """Whether the weights were trained on since they were loaded; another type is no change."""
        own = self.module.state_dict()
        return any(
            not torch.equal(loaded.to(own[name].dtype), own[name].cpu())
            for name, loaded in self.weights.items()
        )

    def choose_levels(self, asked: Levels | None) -> Sequence[float]:
        """Choose the levels of intervals: those asked for, or else what can be had.

        What is left out of :data:`~dist_train.coverage.TOLD_LEVELS` is warned of.

        Args:
            asked: In percent, not yet checked; empty: none; None: not asked.

        Returns:
            ``asked``, or those that validation supports: none without a calibration, and none
            once the weights are other ones.

        Raises:
            DataError: Levels are asked for, and the weights were trained on.
        """
        if isinstance(asked, np.ndarray):
            numbers: Sequence[float] = asked.tolist()
            return self.choose_levels(numbers)
        if asked is not None and (not isinstance(asked, Sequence) or not asked):
            return asked
        if self.calibration is None:
            if asked is None:
                _warn(
                    "the run has no calibration; timellm evaluate --run RUN makes one, which an "
                    "export takes along"
                )
            return asked or ()
        if self.is_changed:
            if asked is not None:
                raise DataError(
                    f"level={asked!r}: the weights were trained on, and what is known of errors "
                    "is of those that were loaded; ask for level=[] and get the forecasts alone, "
                    "or load the folder again."
                )
            _warn("the weights were trained on, and what is known of errors is of others")
            return ()
        if asked is not None:
            return asked
        highest = self.calibration.levels[-1]
        if highest < TOLD_LEVELS[-1]:
            _warn(
                f"{self.calibration.num_windows} validation windows bound no more than "
                f"{highest:g} %",
                " of " + " and ".join(f"{one:g} %" for one in TOLD_LEVELS if one > highest),
            )
        return tuple(self.calibration.supported(TOLD_LEVELS))

    def calibrated(self, data: ForecastData) -> "LoadedRun":
        """Give a run that has no calibration one, from the data it was trained on; collective.

        Nothing is written; see :func:`dist_train.calibration.save`.
        """
        # Decided alike, for a rank may already see what another evaluation has just written.
        if not any(distributed.gather_objects(self.calibration is None)):
            return self
        made = calibration.calibrate(
            partial(self.forecast, split="val"),
            data,
            batch_size=self.config.train.eval_batch_size,
            prompt_builder=self.prompt_builder,
            num_workers=self.config.data.num_workers,
        )
        return replace(self, calibration=made)


def _warn(why: str, which: str = "") -> None:
    warnings.warn(f"no intervals{which}: {why}.", stacklevel=4)


def load_run(folder: Path, root: str | None = None) -> LoadedRun:
    """Load the best checkpoint of a run, and its memory; collective where it has one.

    The memory's bank is read from where the training left it, and built anew where it is gone.

    Args:
        folder: Folder of the run.
        root: Folder of the catalog's files, instead of the run's ``data.root``.

    Raises:
        CheckpointError: There is none, it is damaged, or its backbone is not the one found here.
        DataError: The run has a memory, and its series are missing or have changed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--run {folder}: no such folder; give the folder of a run.")
    checkpoint = load_checkpoint(folder / "best")
    config = load_saved_config(checkpoint.folder / "config.yaml")
    if root is not None:
        config = replace(config, data=replace(config.data, root=root))
    files = locate_backbone(config.backbone.name, kind=config.backbone.kind)
    check_backbone(config, files, checkpoint.manifest["backbone"]["fingerprint"])
    with distributed.agree_or_raise("Loading the calibration"):
        known_errors = calibration.load(folder)
    loaded = assemble(
        config,
        files,
        DTYPES[checkpoint.manifest["dtype"]],
        checkpoint.model,
        checkpoint.series,
        retriever=_load_retriever(config, checkpoint, folder),
        known_errors=known_errors,
    )
    return replace(loaded, checksum=checkpoint.manifest["sha256"]["model.safetensors"])


def check_backbone(config: RunConfig, files: BackboneFiles, expected: str) -> None:
    """Refuse another backbone than that of the training.

    Raises:
        CheckpointError: It has another fingerprint.
    """
    found = fingerprint(files)
    if found != expected:
        raise CheckpointError(
            f"backbone.name={config.backbone.name}: the weights found here are not the ones this "
            f"run was trained with (fingerprint {found[:12]}, expected {expected[:12]}); restore "
            "the original backbone."
        )


def assemble(
    config: RunConfig,
    files: BackboneFiles,
    dtype: torch.dtype,
    state: Mapping[str, Tensor],
    series: dict[str, Any],
    *,
    retriever: Retriever | None,
    known_errors: Calibration | None,
) -> LoadedRun:
    """Put a trained forecaster together from its parts, in eval mode on this rank's device.

    Args:
        config: The run.
        files: Its backbone.
        dtype: What it computes in.
        state: Trained weights and buffers.
        series: What is known of the series.
        retriever: Its memory; None where it has none.
        known_errors: Its calibration.
    """
    texts = descriptions(series)
    prompt_builder = build_prompt_builder(config, files, texts)
    module = build_forecaster(
        config, files, dtype, prompt_builder,
        num_sources=len(texts), num_variates=len(series["series"][0]["columns"]),
    )  # fmt: skip
    module.load_trained_state_dict(state)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    module.to(distributed.device()).eval()
    own = module.state_dict()
    return LoadedRun(
        config=config,
        module=module,
        prompt_builder=prompt_builder,
        retriever=retriever,
        series=series,
        calibration=known_errors,
        weights={name: value.to(own[name].dtype) for name, value in state.items()},
    )


def training_data_of(run: LoadedRun) -> ForecastData:
    """Read the series of a run of :func:`load_run`, unless its memory has read them already.

    Raises:
        DataError: As :func:`load_training_data`.
    """
    if run.retriever is not None:
        return run.retriever.data
    return load_training_data(run.config, run.series)


def load_training_data(config: RunConfig, facts: dict[str, Any]) -> ForecastData:
    """Read the series a run was trained on.

    Args:
        config: The run.
        facts: What its checkpoint knows of them.

    Raises:
        DataError: They are missing, or are not the ones it was trained on.
    """
    data = load_forecast_data(config.data, with_dates=config.model.reads_dates)
    found, expected = data.series_set.checksum, facts["checksum"]
    if found != expected:
        raise DataError(
            f"{data.series_set.name}: the file is not the one the run was trained on (checksum "
            f"{found[:12]}, expected {expected[:12]}); restore it, or name its folder with "
            "--data.root."
        )
    return data


def _load_retriever(config: RunConfig, checkpoint: Checkpoint, folder: Path) -> Retriever | None:
    if config.gram.use_gram is not True:
        return None
    data = load_training_data(config, checkpoint.series)
    off = sources_off(checkpoint.training.get("closed_form", {}))
    retriever = Retriever(data, config.gram, config.bank, bank_root(folder), off=off)
    retriever.refresh(checkpoint.memory)
    return retriever
