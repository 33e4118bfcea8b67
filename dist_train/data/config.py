"""Settings of the data: which series, how they are split, what a window is.

Free of torch, so that a configuration is read and refused before anything heavy is imported.
"""

from dataclasses import dataclass
from typing import Literal


class DataError(ValueError):
    """The data cannot be used as they are; the message says what to change."""


def quote(cell: object, limit: int = 60) -> str:
    """Write a cell or a name into a message; of a long one the beginning."""
    text = str(cell)
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which series are forecast, and how they are cut."""

    dataset: str = "vic_elec"
    """A name of the catalog; it brings file name, frequency, splits and description with it."""

    path: str | None = None
    """Own CSV or Parquet file instead of a catalog entry; ``dataset`` is then ignored."""

    root: str | None = None
    """Folder of the catalog's files; else the environment variable TIMELLM_DATA_ROOT."""

    layout: Literal["auto", "wide", "long"] = "auto"
    """wide: a date column and one column per variate; long: unique_id, ds, y; auto: by header."""

    date_column: str | None = None
    """Name of the date column; default ``date`` (wide) or ``ds`` (long)."""

    columns: list[str] | None = None
    """Variates to use, in this order; default all numeric columns of the file."""

    description: str | None = None
    """What the series are, for the prompt; default from the catalog."""

    seasonal_period: int | None = None
    """Steps per season for seasonal naive and MASE; default from catalog or frequency."""

    seq_len: int = 512
    """Context window, in time steps."""

    pred_len: int = 96
    """Forecast horizon, in time steps."""

    splits: list[float] | None = None
    """Train, validation and test share, summing to 1; default from catalog, else 0.7/0.1/0.2."""

    percent: int = 100
    """Share of the training windows used, the oldest ones as in Time-LLM, in percent (few-shot)."""

    train_stride: int = 1
    """Steps between the starts of training windows."""

    val_stride: int = 1
    """Steps between the windows that model selection scores; reported scores always use 1."""

    missing: Literal["error", "interpolate"] = "error"
    """Missing values: stop and name them, or fill them linearly between their neighbours."""

    dates: Literal["strict", "as_is"] = "strict"
    """strict: duplicated or skipped time stamps stop the run; as_is: rows are taken in order.

    A catalog entry whose published file has such defects brings as_is with it."""

    num_workers: int = 1
    """Processes per rank that prepare batches and prompts; 0 prepares them in the rank itself."""

    def __post_init__(self) -> None:
        for key in ("seq_len", "pred_len", "train_stride", "val_stride"):
            if getattr(self, key) < 1:
                raise ValueError(f"data.{key} must be at least 1, got {getattr(self, key)}.")
        if not 1 <= self.percent <= 100:
            raise ValueError(f"data.percent must be in [1, 100], got {self.percent}.")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {self.num_workers}.")
        if self.splits is not None:
            if len(self.splits) != 3 or any(share <= 0 for share in self.splits):
                raise ValueError(
                    f"data.splits must be three positive shares (train, validation, test), "
                    f"got {self.splits}."
                )
            if abs(sum(self.splits) - 1) > 1e-6:
                raise ValueError(f"data.splits must sum to 1, got {self.splits}.")
        if self.seasonal_period is not None and self.seasonal_period < 1:
            raise ValueError(
                f"data.seasonal_period must be at least 1, got {self.seasonal_period}."
            )
