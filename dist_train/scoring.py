"""Score a trained run again: the ``evaluate`` command."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dist_train import baselines, calibration, coverage, distributed, saved_forecasts, watchdog
from dist_train.checkpoint import CheckpointError
from dist_train.comparison import Comparison, score_beside_baselines
from dist_train.config import TrainConfig
from dist_train.coverage import Coverage, CoverageSums
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Observer
from dist_train.export import is_export
from dist_train.loading import LoadedRun, load_run, training_data_of
from dist_train.metrics import Scores
from dist_train.saved_forecasts import ForecastFile
from dist_train.score_table import table, table_of_sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the command line said about scoring a run."""

    run: Path
    """Folder of the run."""

    split: str = "test"
    """val or test."""

    batch_size: int | None = None
    """Windows per forward pass; None: the run's ``train.eval_batch_size``."""

    root: str | None = None
    """Folder of the catalog's files; None: the run's ``data.root``."""

    save_forecasts: Path | None = None
    """Parquet file that is made of all forecasts; None: none."""


def evaluate_run(asked: Evaluation) -> dict[str, Any] | None:
    """Score a run's best checkpoint and the baselines on all windows of a split; collective.

    Args:
        asked: What is scored.

    Returns:
        Scores by forecaster and coverage on rank 0, None on the others.

    Raises:
        CheckpointError: The run has no usable checkpoint, or is an exported folder.
        DataError: The data is missing, or is not what the run was trained on.
        ValueError: A batch of nothing, or no file of forecasts can be made there.
    """
    if asked.batch_size is not None and asked.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {asked.batch_size}.")
    if is_export(asked.run):
        raise CheckpointError(
            f"--run {asked.run}: an exported folder cannot be scored, for it does not hold the "
            "series; give the folder of the run that it was exported from."
        )
    if asked.save_forecasts is not None:
        saved_forecasts.check_path(asked.save_forecasts)
    with _joined():
        run = load_run(asked.run, asked.root)
        data = training_data_of(run)
        run = _calibrated(run, asked.run, data)
        comparison, measured = _score(run, data, asked)
        if not distributed.is_main_rank():
            return None
        tables = [table(comparison.scores)]
        if comparison.by_source:
            tables.append(table_of_sources(comparison.by_source))
        print(*tables, coverage.table(measured, asked.split), sep="\n\n", flush=True)
        sources = {name: _plain(rows) for name, rows in comparison.by_source.items()}
        return {
            "run": asked.run.name,
            "split": asked.split,
            "scores": _plain(comparison.scores),
            **({"sources": sources} if sources else {}),
            **coverage.summary(measured),
            "intervals": [dataclasses.asdict(one) for one in measured],
        }


@contextmanager
def _joined() -> Iterator[None]:
    """Be a rank of the job, watched, for a block."""
    defaults = TrainConfig()
    distributed.initialize_process_group(defaults.collective_timeout_s)
    try:
        with watchdog.watch(defaults.watchdog_s):
            yield
    finally:
        distributed.shut_down()


def _calibrated(run: LoadedRun, folder: Path, data: ForecastData) -> LoadedRun:
    """Calibrate a run from before, and keep that in its folder where it can be written."""
    before = run.calibration
    run = run.calibrated(data)
    assert run.calibration is not None
    if run.calibration is not before and distributed.is_main_rank():
        try:
            if not calibration.save(folder, run.calibration, data, weights=run.checksum):
                sys.stderr.write(f"note: {folder} has a better model by now; evaluate it again\n")
        except OSError as error:
            sys.stderr.write(f"note: {calibration.FILE} is not kept in {folder}: {error}\n")
    return run


def _score(
    run: LoadedRun, data: ForecastData, asked: Evaluation
) -> tuple[Comparison, tuple[Coverage, ...]]:
    """Score, count what lies within the intervals, and save forecasts; collective."""
    assert run.calibration is not None
    ridge, by_source = baselines.fit_ridges(data)
    counted = CoverageSums(run.calibration, data, asked.split)
    observers: list[Observer] = [counted]
    with ExitStack() as open_files:
        file = None
        if asked.save_forecasts is not None:
            with distributed.agree_or_raise("Writing the forecasts"):
                file = open_files.enter_context(
                    ForecastFile(
                        asked.save_forecasts, data, asked.split,
                        calibration=run.calibration,
                        ridge=baselines.ridge_forecast(*baselines.own_ridges(ridge, by_source)),
                    )
                )  # fmt: skip
            observers.append(file)
        comparison = score_beside_baselines(
            partial(run.forecast, split=asked.split), run.config, data, asked.split,
            module=run.module, retriever=run.retriever, prompt_builder=run.prompt_builder,
            ridge=ridge, by_source=by_source,
            batch_size=asked.batch_size or run.config.train.eval_batch_size,
            observers=observers,
        )  # fmt: skip
        measured = counted.finish()
        if file is not None:
            file.finish()
    return comparison, measured


def _plain(rows: Mapping[str, Scores]) -> dict[str, Any]:
    return {name: dataclasses.asdict(row) for name, row in rows.items()}
