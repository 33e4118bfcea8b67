"""Which rows of a series train, select and test a model, and the scale the first ones set.

Shape legend (this file):
    T  time steps     N  variates
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dist_train.data.catalog import Borders
from dist_train.data.config import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def borders(num_rows: int, split: Borders, where: str = "") -> dict[Split, tuple[int, int]]:
    """Cut a series in time order.

    The ranges say which rows may be forecast; a validation or test window takes its context from
    before its range. Shares are rounded as TSLib does: train and test down, validation the rest.

    Args:
        num_rows: Rows of the series.
        split: Shares of the rows, or counts from the oldest on; rows beyond the counts are not
            used, as in the published ETT splits.
        where: Which series, for messages.

    Returns:
        Row range [begin, end) of each split.

    Raises:
        DataError: The counts need more rows than there are.
    """
    if all(isinstance(part, int) for part in split):
        num_train, num_val, num_test = (int(part) for part in split)
        needed = num_train + num_val + num_test
        if needed > num_rows:
            raise DataError(
                f"{where or 'the series'} has {num_rows} rows, the published split "
                f"{num_train}/{num_val}/{num_test} needs {needed}: use the whole file, or set "
                "data.splits=[0.7,0.1,0.2]."
            )
    else:
        num_train = int(num_rows * split[0])
        num_test = int(num_rows * split[2])
        num_val = num_rows - num_train - num_test
    val_end = num_train + num_val
    return {
        "train": (0, num_train),
        "val": (num_train, val_end),
        "test": (val_end, val_end + num_test),
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scaler:
    """Location and scale of each variate, taken from the training rows alone."""

    mean: npt.NDArray[np.float64]
    """Shape (N,)."""

    scale: npt.NDArray[np.float64]
    """Population standard deviation; 1 where the training rows are constant. Shape (N,)."""

    constant: tuple[int, ...] = ()
    """Variates whose training rows are constant."""

    @classmethod
    def fit(cls, values: npt.NDArray[np.float64]) -> "Scaler":
        """Measure the training rows.

        Args:
            values: Original units. Shape (T, N).

        Raises:
            ValueError: No rows.
        """
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(f"values must be (T, N) with T > 0, got shape {values.shape}.")
        mean_N, scale_N = values.mean(axis=0), values.std(axis=0)
        # Rounding gives the mean of equal numbers a tiny deviation; dividing by it would blow up.
        constant_N = values.min(axis=0) == values.max(axis=0)
        mean_N[constant_N] = values[0, constant_N]
        scale_N[constant_N] = 1.0
        return cls(
            mean=mean_N, scale=scale_N, constant=tuple(int(n) for n in np.flatnonzero(constant_N))
        )

    def transform(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Standardise. Shape (..., N) in original units, same shape out."""
        return (values - self.mean) / self.scale

    def inverse(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Return to original units. Shape (..., N) standardised, same shape out."""
        restored: npt.NDArray[np.float64] = values * self.scale + self.mean
        return restored
