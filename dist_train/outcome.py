"""What a training has come to: its scores on test, its intervals, its report."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_train import calibration, coverage, distributed, report, run_folder
from dist_train.closed_form import ClosedForm
from dist_train.comparison import Comparison, score_beside_baselines
from dist_train.config import RunConfig
from dist_train.conformal import Calibration
from dist_train.coverage import Coverage, CoverageSums
from dist_train.data.windows import ForecastData
from dist_train.examples import ExampleMaker
from dist_train.figures.forecast import ForecastExample
from dist_train.figures.samples import ForecastSample
from dist_train.memory_account import account
from dist_train.metrics import Scores
from dist_train.report import RunReport
from dist_train.score_table import closing, table, table_of_sources
from dist_train.trainer import FitResult, Trainer
from dist_train.window_errors import WindowErrors
from memory_index.atomic_file import write_text

_IMPORTED = time.time()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of the best model."""

    comparison: Comparison
    """On test, the model first."""

    measured: tuple[Coverage, ...]
    """What intervals cover on test."""

    calibration: Calibration
    """How they are made."""

    example: ForecastExample
    """A test window, for ``forecast.png``."""

    samples: Sequence[ForecastSample]
    """Test windows with intervals and neighbours."""

    @property
    def scores(self) -> dict[str, Scores]:
        """On test, by forecaster."""
        return self.comparison.scores

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        told = {f"test/mse/{name}": row.mse for name, row in self.scores.items()}
        for source, rows in self.comparison.by_source.items():
            told |= {f"test/sources/{source}/{name}": row.mse for name, row in rows.items()}
        return told | {
            f"test/{key}": value for key, value in coverage.summary(self.measured).items()
        }


def measure(trainer: Trainer, config: RunConfig, closed: ClosedForm) -> Outcome:
    """Calibrate on validation and score on test, with the parameters there are; collective.

    The error of each test window is written into the run's folder.

    Args:
        trainer: With the best model restored.
        config: The run, all decided.
        closed: Its ridges stand beside every result.

    Raises:
        StopRequestedError: A signal asked a rank to stop.
    """
    data, test = trainer.data, partial(trainer.forecast, split="test")
    known = calibration.calibrate(
        partial(trainer.forecast, split="val"), data,
        batch_size=config.train.eval_batch_size, prompt_builder=trainer.prompt_builder,
        num_workers=config.data.num_workers, between=trainer.stop_if_asked,
    )  # fmt: skip
    trainer.draw_panel(trainer.state.step, known)
    counted, errors = CoverageSums(known, data, "test"), WindowErrors(data.windows["test"])
    comparison = score_beside_baselines(
        test, config, data, "test",
        module=trainer.engine.module, retriever=trainer.retriever,
        prompt_builder=trainer.prompt_builder, ridge=closed.ridge,
        by_source=closed.by_source, batch_size=config.train.eval_batch_size,
        between=trainer.stop_if_asked, observers=[counted], watch=errors.watch,
    )  # fmt: skip
    errors.write(config.run_folder / run_folder.ERRORS_FILE)
    maker = ExampleMaker(
        test, closed.plain, data, prompt_builder=trainer.prompt_builder,
        retriever=trainer.retriever, calibration=known,
    )  # fmt: skip
    return Outcome(
        comparison=comparison, measured=counted.finish(), calibration=known, example=maker.middle(),
        samples=maker.samples(),
    )  # fmt: skip


def result_of(
    config: RunConfig, fit: FitResult, closed: ClosedForm, outcome: Outcome
) -> dict[str, Any]:
    """Make what ``result.json`` holds, as plain JSON values."""
    started = float(os.environ.get("TIMELLM_STARTED_AT", _IMPORTED))
    scores = outcome.scores
    result = {
        "run": config.name,
        "test_mse": round(outcome.scores["Time-LLM"].mse, 6),
        "ridge_mse": round(outcome.scores["ridge"].mse, 6),
        "train_s": round(fit.train_s, 1),
        "total_s": round(time.time() - started, 1),
        "ranks": distributed.world_size(),
        "best_step": fit.best_step,
        "steps": fit.steps,
        "val_mse": fit.best_val_mse,
        "use_gram": config.gram.use_gram,
        "windows_per_s": round(fit.windows_per_s, 2),
        "peak_rss_gib": round(fit.peak_rss_gib, 3),
        "peak_device_gib": fit.peak_device_gib,
        **coverage.summary(outcome.measured),
        "scores": {name: asdict(row) for name, row in scores.items()},
        "intervals": [asdict(one) for one in outcome.measured],
        **account.cost(),
    }
    if outcome.comparison.by_source:
        result["sources"] = {
            source: {name: asdict(row) for name, row in rows.items()}
            for source, rows in outcome.comparison.by_source.items()
        }
    if closed.verdict is not None:
        result["ridge_sample_val_mse"] = closed.verdict.without.validation_mse
        result["ridge_retrieval_val_mse"] = closed.verdict.with_retrieval.validation_mse
    return result


def write(
    folder: Path,
    config: RunConfig,
    data: ForecastData,
    result: Mapping[str, Any],
    outcome: Outcome,
) -> list[str]:
    """Write calibration, report and ``result.json`` into the run's folder; on one rank.

    Returns:
        What the terminal says at the end.
    """
    saved = calibration.save(folder, outcome.calibration, data)
    report.write(
        folder,
        RunReport(
            config=config, data=data, result=result, scores=outcome.scores,
            by_source=outcome.comparison.by_source, example=outcome.example,
            samples=outcome.samples, measured=outcome.measured,
            calibration=saved,
        ),
    )  # fmt: skip
    write_text(folder / run_folder.RESULT_FILE, json.dumps(result, indent=2))
    by_source = outcome.comparison.by_source
    return [
        table(outcome.scores), "", *([table_of_sources(by_source), ""] if by_source else []),
        coverage.table(outcome.measured, "test"),
        *closing(folder / report.REPORT_FILE, result),
    ]  # fmt: skip
