"""Records of single runs, and the table that they add up to."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from dist_train.config import ConfigError
from memory_index.atomic_file import write_text

RESULTS = Path(__file__).parent / "results"
"""Folder of the records that the table of README is made of."""

BEST = "best"
"""Name of our tuned preset among the models."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run reached, and how it can be run again."""

    dataset: str
    horizon: int
    model: str
    seed: int | None
    """None: no seed changes it."""

    mse: float
    """Test MSE of standardised values, every window scored once."""

    mae: float
    ridge_mse: float
    """Of the ridge on the same windows."""

    val_mse: float
    """What the model was chosen by."""

    num_windows: int
    seq_len: int
    train_s: float
    ranks: int
    config: str
    """Hash of the settings, the seed aside."""

    code: str
    commit: str
    hardware: str
    date: str
    command: str

    @property
    def file_name(self) -> str:
        """Where it lies in a folder of records."""
        return record_name(self.dataset, self.horizon, self.model, self.seed)


@dataclass(frozen=True, kw_only=True)
class Row:
    """All seeds of one model on one data set and horizon."""

    dataset: str
    horizon: int
    model: str
    seeds: list[int]
    deterministic: bool
    mse_mean: float
    mse_std: float | None
    """Sample standard deviation over seeds; None with fewer than two."""

    mae_mean: float
    ridge_mse: float


def record_name(dataset: str, horizon: int, model: str, seed: int | None) -> str:
    """Name of a record's file; no seed where none changes the numbers."""
    told = "" if seed is None else f"_seed{seed}"
    return f"{dataset}_{horizon}_{model}{told}.json"


def check_new(path: Path) -> None:
    """Refuse to write over a record.

    Raises:
        ConfigError: There is one of that run already.
    """
    if path.exists():
        raise ConfigError(
            f"{path}: there is a record of this run already; move it away, or give another --out."
        )


def write_record(record: Record, folder: Path) -> Path:
    """Add a record to a folder; returns its file.

    Raises:
        ConfigError: There is one of that run already.
    """
    path = folder / record.file_name
    check_new(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(record), indent=2) + "\n")
    return path


def read_records(folder: Path) -> list[Record]:
    """Read every record of a folder.

    Raises:
        ConfigError: There is none, or a file is no record, or two are of one run, or the seeds of
            one row had different settings.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ConfigError(
            f"--from-runs {folder}: holds no record; make one with --dataset, --horizon, --model."
        )
    records = {path: _read(path) for path in paths}
    known: dict[tuple[object, ...], Path] = {}
    settings: dict[tuple[object, ...], tuple[str, Path]] = {}
    for path, record in records.items():
        row = (record.dataset, record.horizon, record.model)
        before = known.setdefault((*row, record.seed), path)
        if before is not path:
            raise ConfigError(f"{path}: is of the same run as {before}; move one of them away.")
        config, first = settings.setdefault(row, (record.config, path))
        if config != record.config:
            raise ConfigError(
                f"{path}: has other settings than {first}, and both would be one row; run one of "
                "them again, or name its model anew."
            )
    return list(records.values())


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Join the seeds of each data set, horizon and model, in that order."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.dataset, record.horizon, record.model), []).append(record)
    return [_row(groups[key]) for key in sorted(groups)]


def to_markdown(rows: Sequence[Row]) -> str:
    """Lay rows out, and the average over horizons of each model that has several."""
    lines = [
        "| data set | horizon | model | seeds | MSE | MAE | ridge MSE | over ridge |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.model), []).append(row)
        seeds = "none needed" if row.deterministic else ", ".join(map(str, row.seeds))
        spread = "" if row.mse_std is None else f" +- {row.mse_std:.4f}"
        lines.append(
            f"| {row.dataset} | {row.horizon} | {row.model} | {seeds} | {row.mse_mean:.4f}{spread} "
            f"| {row.mae_mean:.4f} | {row.ridge_mse:.4f} | {row.mse_mean - row.ridge_mse:+.4f} |"
        )
    for (dataset, model), group in groups.items():
        if len(group) > 1:
            mse, mae, ridge = (
                statistics.fmean(getattr(row, name) for row in group)
                for name in ("mse_mean", "mae_mean", "ridge_mse")
            )
            horizons = "/".join(str(row.horizon) for row in group)
            lines.append(
                f"| {dataset} | average of {horizons} | {model} | | {mse:.4f} | {mae:.4f} "
                f"| {ridge:.4f} | {mse - ridge:+.4f} |"
            )
    return "\n".join(lines)


def _row(records: Sequence[Record]) -> Row:
    first = records[0]
    values = [record.mse for record in records]
    return Row(
        dataset=first.dataset,
        horizon=first.horizon,
        model=first.model,
        seeds=sorted(record.seed for record in records if record.seed is not None),
        deterministic=first.seed is None,
        mse_mean=statistics.fmean(values),
        mse_std=statistics.stdev(values) if len(values) > 1 else None,
        mae_mean=statistics.fmean(record.mae for record in records),
        ridge_mse=statistics.fmean(record.ridge_mse for record in records),
    )


def _read(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
        return Record(**content)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is no record of a run ({error}); move it away.") from error


def _check(content: Mapping[str, Any]) -> None:
    """Refuse what would make nonsense of the table: wrong types, and numbers that are none."""
    if not isinstance(content, dict):
        raise ValueError("not an object")
    types = get_type_hints(Record)
    missing = [item.name for item in fields(Record) if item.name not in content]
    if missing:
        raise ValueError(f"lacks {missing[0]}")
    for name, value in content.items():
        kind = types.get(name)
        if kind is float:
            kind = int | float
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        if kind is None or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r:.40}")
