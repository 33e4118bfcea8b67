"""Series on the scale of their training rows.

Shape legend (this file):
    T  time steps of one series     N  variates
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dist_train.data.config import DataError
from dist_train.data.splits import Scaler


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standardised:
    """What a forecaster reads of a series."""

    scaler: Scaler
    """Fitted on the training rows."""

    values: npt.NDArray[np.float32]
    """All rows, standardised. Shape (T, N)."""


def standardise(
    values: npt.NDArray[np.float64], train_rows: tuple[int, int], columns: tuple[str, ...], id_: str
) -> Standardised:
    """Fit the scale of a series on its training rows, and bring all its rows onto it.

    Args:
        values: Original units. Shape (T, N).
        train_rows: Training rows [begin, end).
        columns: Names of the N variates, for messages.
        id_: Name of the series, for messages.

    Raises:
        DataError: A value is too far from the training rows to be a float32 on their scale.
    """
    begin, end = train_rows
    scaler = Scaler.fit(values[begin:end])
    # A deviation may be too small for a float64; what comes of that is refused below.
    with np.errstate(all="ignore"):
        scaled = scaler.transform(values).astype(np.float32)
    if not np.isfinite(scaled).all():
        t, n = np.argwhere(~np.isfinite(scaled))[0]
        raise DataError(
            f"column {columns[n]!r} of series {id_!r} has {values[t, n]:g} at row {t + 1}, too far "
            f"from its training rows (standard deviation {scaler.scale[n]:g}) to be standardised: "
            "correct it."
        )
    return Standardised(scaler=scaler, values=scaled)
