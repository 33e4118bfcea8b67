"""The error of every single window, by forecaster: what two runs are compared on, pair by pair.

Shape legend (this file):
    B  windows in the batch   H  pred_len   N  variates
    W  windows of the split   F  forecasters
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train import distributed
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import WindowSet
from dist_train.evaluation import Forecast
from memory_index.atomic_file import replacing, write_tensors
from model.horizons import squared_errors


class WindowErrors:
    """Writes down what forecasters get wrong while :func:`score_split` scores them."""

    def __init__(self, windows: WindowSet) -> None:
        """Begin with none.

        Args:
            windows: All windows of the split that is scored.
        """
        self._windows = windows
        self._errors: dict[str, Tensor] = {}

    def watch(self, forecasts: Mapping[str, Forecast]) -> dict[str, Forecast]:
        """Return the same forecasters, whose errors are written down from now on."""
        return {name: self._watched(name, forecast) for name, forecast in forecasts.items()}

    def gather(self) -> dict[str, NDArray[np.float64]]:
        """Return the errors by forecaster, on every rank, shape (W,) each; collective."""
        names = list(self._errors)
        stacked_FW = distributed.reduce_sum(torch.stack([self._errors[name] for name in names]))
        return dict(zip(names, stacked_FW.numpy(), strict=True))

    def write(self, path: Path) -> None:
        """Write the errors of all ranks; collective, rank 0 writes.

        Raises:
            OSError: It cannot be written.
        """
        gathered = self.gather()
        series, starts = self._windows.locate_batch(np.arange(len(self._windows)))
        tensors = {name: torch.from_numpy(errors).float() for name, errors in gathered.items()}
        tensors |= {
            "/series": torch.from_numpy(series),
            "/forecast_start": torch.from_numpy(starts + self._windows.seq_len),
        }
        with distributed.agree_or_raise("Writing the errors of each window"):
            if distributed.is_main_rank():
                with replacing(path) as beside:
                    write_tensors(beside, tensors)

    def _watched(self, name: str, forecast: Forecast) -> Forecast:
        errors_W = torch.zeros(len(self._windows), dtype=torch.float64)
        self._errors[name] = errors_W

        def watched(batch: WindowBatch) -> Tensor:
            predicted_BHN = forecast(batch)
            valid = batch.num_valid  # the rest are repeats, of windows that another rank scores
            predicted, target = predicted_BHN[:valid].double(), batch.target[:valid].double()
            errors_B = squared_errors(predicted, target).mean(dim=(1, 2))
            errors_W[batch.window_ids[:valid].cpu()] = errors_B.cpu()
            return predicted_BHN

        return watched


@dataclass(frozen=True, kw_only=True)
class SavedErrors:
    """What :meth:`WindowErrors.write` has written."""

    mse: dict[str, NDArray[np.float64]]
    """Mean squared error of each window, by forecaster. Shape (W,) each."""

    series: NDArray[np.int64]
    """Number of each window's series. Shape (W,)."""

    forecast_start: NDArray[np.int64]
    """Row of its series where each window's forecast begins. Shape (W,)."""


def read_window_errors(path: Path) -> SavedErrors:
    """Read the errors of a finished run; without importing more of torch than there is.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        series, starts = arrays.pop("/series"), arrays.pop("/forecast_start")
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: holds no errors of windows ({error}); train again.") from error
    return SavedErrors(
        mse={name: values.astype(np.float64) for name, values in arrays.items()},
        series=series,
        forecast_start=starts,
    )
