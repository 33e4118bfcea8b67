"""What the cells of an ablation have reached: read, checked, and held against the first row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_train.ablation.cells import Cell, Plan, Variant
from dist_train.ablation.significance import Difference, diebold_mariano, paired_t_test
from dist_train.baseline_names import BASELINES, DETERMINISTIC
from dist_train.config import ConfigError, config_to_yaml, load_saved_config
from dist_train.data.config import DataConfig, SeriesConfig, SourceConfig
from dist_train.run_folder import ERRORS_FILE, RESULT_FILE

MODEL = "Time-LLM"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One forecaster of one finished cell."""

    seed: int
    test_mse: float
    test_mae: float
    val_mse: float
    best_step: int | None
    train_s: float
    peak_gib: float
    """Of GPU memory where it ran on one, else resident memory of the largest rank."""

    trained_parameters: int
    windows_per_s: float | None
    num_windows: int
    code: str
    data: DataConfig
    """Which series, and how they are cut."""

    checksum: str
    """Of what was read of them."""

    errors: Path
    """File with the error of each test window."""

    forecaster: str
    """Whose errors there."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row of the table."""

    name: str
    settings: str
    learning_rate: float
    deterministic: bool
    measured: tuple[Measured, ...]
    """By seed; those that have not finished are missing."""

    failures: Mapping[int, str]
    """Why cells failed, by seed."""

    missing: tuple[int, ...]
    """Seeds that have not run yet, or not to their end."""

    folder: Path
    others: tuple["RowResult", ...] = ()
    """The same row at the learning rates that were not chosen."""

    @property
    def num_failed(self) -> int:
        """Cells that have failed, at any learning rate."""
        return sum(len(one.failures) for one in (self, *self.others))

    @property
    def num_missing(self) -> int:
        """Cells that have not run to their end, at any learning rate."""
        return sum(len(one.missing) for one in (self, *self.others))

    @property
    def mse(self) -> tuple[float, float | None]:
        """Mean and spread of the test MSE."""
        return _mean_and_spread([one.test_mse for one in self.measured])

    @property
    def mae(self) -> tuple[float, float | None]:
        """Mean and spread of the test MAE."""
        return _mean_and_spread([one.test_mae for one in self.measured])

    @property
    def val_mse(self) -> float:
        """Mean over seeds of the MSE that selects the model."""
        return float(np.mean([one.val_mse for one in self.measured]))

    @cached_property
    def window_errors(self) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Forecast starts, ascending, and the squared error at each, over seeds and series.

        None where it was not written, or the seeds were scored on different windows.
        """
        from dist_train.window_errors import read_window_errors

        starts, errors = [], []
        for one in self.measured:
            try:
                saved = read_window_errors(one.errors)
            except (OSError, ValueError):
                return None
            starts.append(saved.forecast_start)
            errors.append(saved.mse[one.forecaster])
        if not starts or any(not np.array_equal(each, starts[0]) for each in starts):
            return None
        unique, place = np.unique(starts[0], return_inverse=True)
        mean = np.mean(errors, axis=0)
        # Series that are forecast at one time rise and fall together: one value for each time.
        return unique, np.bincount(place, weights=mean) / np.bincount(place)


def read_rows(plan: Plan) -> list[RowResult]:
    """Read every row of the grid: of several learning rates the one that validation prefers.

    Raises:
        ConfigError: A cell's folder holds a run of other settings.
    """
    return [
        choose([_read(v, row.name, MODEL) for v in plan.variants if v.row.name == row.name])
        for row in plan.grid.rows
    ]


def read_baselines(plan: Plan) -> list[RowResult]:
    """Read the rows of the baselines, in the order of the plan; those not run are left out.

    Raises:
        ConfigError: As :func:`read_rows`.
    """
    groups: dict[tuple[str, ...], list[Variant]] = {}
    for variant in plan.baselines:
        groups.setdefault(variant.row.keys, []).append(variant)
    rows = [
        choose([_read(variant, BASELINES[name], BASELINES[name]) for variant in variants])
        for names, variants in groups.items()
        for name in names
    ]
    return [row for row in rows if row.measured or row.failures]


def choose(tried: Sequence[RowResult]) -> RowResult:
    """The lowest mean validation MSE, of those that have finished all seeds where any has."""
    chosen, finished = tried[0], [row for row in tried if row.measured]
    if finished:
        most = max(len(row.measured) for row in finished)
        whole = [row for row in finished if len(row.measured) == most]
        chosen = min(whole, key=lambda row: row.val_mse)
    return replace(chosen, others=tuple(row for row in tried if row is not chosen))


def check_one_data(rows: Sequence[RowResult]) -> None:
    """Rows may vary the data set; none may have met another version of the same file.

    Args:
        rows: Of one table, its baselines too.

    Raises:
        ConfigError: A file has changed between two runs.
    """
    versions: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for one in row.measured:
            known = versions.setdefault((one.data.label, _reading(one.data)), {})
            known.setdefault(one.checksum, []).append(row.folder.name)
    for (label, _), folders in versions.items():
        if len(folders) > 1:
            first, *others = (", ".join(dict.fromkeys(names)) for names in folders.values())
            raise ConfigError(
                f"{rows[0].folder.parent}: {first} read another version of {label} than "
                f"{', '.join(others)}; restore the file, or move away the folders of the version "
                "that is gone, baselines too, and give the same line again."
            )


def unlike(row: RowResult, base: RowResult) -> str | None:
    """Say why a row does not answer the question of another; None: it does, or has no result."""
    if not row.measured or not base.measured:
        return None
    mine, other = row.measured[0], base.measured[0]
    if mine.checksum != other.checksum:
        return "it is scored on other data"
    if _columns(mine.data) != _columns(other.data):
        return "it forecasts other variates"
    if mine.data.horizons != other.data.horizons:
        steps, others = (", ".join(map(str, one.data.horizons)) for one in (mine, other))
        return f"it forecasts {steps} steps, not {others}"
    if mine.num_windows != other.num_windows:
        return f"it is scored on {mine.num_windows} test windows, not {other.num_windows}"
    return None


def compare(row: RowResult, base: RowResult) -> Difference | None:
    """Hold a row against another, paired over seeds and over windows; None where it cannot be.

    A row without seeds stands beside every seed of the other.
    """
    pairs = _pairs(row, base)
    if not pairs or unlike(row, base) is not None:
        return None
    values = [mine.test_mse - other.test_mse for mine, other in pairs]
    p_windows = None
    # The MSE of several sources is a mean over them, which no series of windows has.
    one_source = len(row.measured[0].data.sources or ()) < 2
    if one_source and row.window_errors is not None and base.window_errors is not None:
        (starts, mine), (other_starts, others) = row.window_errors, base.window_errors
        if np.array_equal(starts, other_starts):
            p_windows = diebold_mariano(mine - others, row.measured[0].data.pred_len)
    return Difference(
        mse=float(np.mean(values)), seeds=len(values),
        p_seeds=paired_t_test(values), p_windows=p_windows,
    )  # fmt: skip


def is_finished(cell: Cell) -> bool:
    """Whether a cell has its result, of the settings that it has now.

    Raises:
        ConfigError: Its folder holds a run of other settings.
    """
    if _read_json(cell.folder / RESULT_FILE) is None:
        return False
    file = cell.folder / "config.yaml"
    if _read_text(file) == config_to_yaml(cell.config):  # nearly always, and soon told
        return True
    if not cell.has_settings_of(load_saved_config(file)):
        raise ConfigError(
            f"{cell.folder}: holds a run of other settings than its cell; move that folder away."
        )
    return True


def facts_of(
    result: Mapping[str, Any], forecaster: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Find a forecaster in the result of the run that made it.

    Args:
        result: Of a training for :data:`MODEL`, else of a run of baselines.
        forecaster: As the result names it.

    Returns:
        What it cost and how validation judged it; and its scores on the test split.
    """
    if forecaster == MODEL:
        return result, result["scores"][MODEL]
    own = result["rows"][forecaster]
    return own, own["scores"]


def _pairs(row: RowResult, base: RowResult) -> list[tuple[Measured, Measured]]:
    if row.measured and row.deterministic:
        return [(row.measured[0], other) for other in base.measured]
    if base.measured and base.deterministic:
        return [(mine, base.measured[0]) for mine in row.measured]
    others = {one.seed: one for one in base.measured}
    return [(one, others[one.seed]) for one in row.measured if one.seed in others]


def _read(variant: Variant, name: str, forecaster: str) -> RowResult:
    measured, failures, missing = [], {}, []
    for cell in variant.cells:
        seed = cell.config.train.seed
        failure = _read_json(cell.failure)
        if is_finished(cell):
            result = _read_json(cell.folder / RESULT_FILE)
            assert result is not None
            measured.append(_measured(cell, result, forecaster))
        elif failure is not None:
            failures[seed] = str(failure.get("reason"))
        else:
            missing.append(seed)
    deterministic = {BASELINES[key] for key in DETERMINISTIC}
    return RowResult(
        name=name,
        settings=" ".join(variant.row.keys) if forecaster == MODEL else "",
        learning_rate=variant.learning_rate,
        deterministic=forecaster in deterministic,
        measured=tuple(measured),
        failures=failures,
        missing=tuple(missing),
        folder=variant.cells[0].folder.parent,
    )


def _measured(cell: Cell, result: Mapping[str, Any], forecaster: str) -> Measured:
    own, scores = facts_of(result, forecaster)
    return Measured(
        seed=cell.config.train.seed,
        test_mse=scores["mse"],
        test_mae=scores["mae"],
        val_mse=own["val_mse"],
        best_step=own.get("best_step"),
        train_s=own["train_s"],
        peak_gib=result["peak_device_gib"] or result["peak_rss_gib"],
        trained_parameters=own["trained_parameters"],
        windows_per_s=own.get("windows_per_s"),
        num_windows=scores["num_windows"],
        code=result["code"],
        data=cell.config.data,
        checksum=result["data"],
        errors=cell.folder / ERRORS_FILE,
        forecaster=forecaster,
    )


def _reading(data: DataConfig) -> str:
    """What is read of which files, as configured: of one version of them it has one checksum."""
    names = [item.name for item in fields(SeriesConfig)]
    sources = [(one.label, *(getattr(one, name) for name in names)) for one in _sources(data)]
    return repr((data.root, sources))


def _columns(data: DataConfig) -> list[list[str] | None]:
    return [one.columns for one in _sources(data)]


def _sources(data: DataConfig) -> Sequence[DataConfig | SourceConfig]:
    return data.sources or [data]


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(_read_text(path) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
