"""Every forecast of a split in one Parquet file, in original units, on any number of ranks.

Each rank writes the windows of its share, in order, into a part beside the file's place; the main
rank puts the parts one after the other. Both hold a few row groups in memory, whatever the split.

Shape legend (this file):
    V  windows of a batch   H  pred_len   N  variates
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from dist_train import distributed, progress
from dist_train.conformal import Calibration
from dist_train.coverage import TOLD_LEVELS
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Forecast

ROWS_PER_GROUP = 1 << 18


def check_path(path: Path) -> None:
    """Refuse a place where no file of forecasts can be made, before anything is loaded.

    Raises:
        ValueError: It exists, does not end in .parquet, or its folder cannot be written.
    """
    told = f"--save_forecasts {path}"
    if path.suffix != ".parquet":
        raise ValueError(f"{told}: the forecasts are written as Parquet; end the name in .parquet.")
    if path.exists() or path.is_symlink():
        raise ValueError(f"{told}: already exists and is not overwritten; name another file.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{told}: {folder} is no folder; make it first, or name another.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{told}: {folder} cannot be written; name another folder.")


class ForecastFile:
    """Writes forecasts while they are scored; an observer of ``score_split``.

    Columns: unique_id, variate, cutoff (the last step seen), ds, step (from 1), y, forecast, ridge,
    and lo-80, hi-80, lo-95, hi-95 where the run is calibrated. Rows: window by window as numbered,
    its variates, their steps.
    """

    def __init__(
        self,
        path: Path,
        data: ForecastData,
        split: str,
        *,
        calibration: Calibration | None = None,
        ridge: Forecast | None = None,
    ) -> None:
        """Open this rank's part; collective.

        Args:
            path: Of the file, the same on all ranks; see :func:`check_path`.
            data: The series.
            split: Where the windows come from.
            calibration: Makes the intervals, at those of
                :data:`~dist_train.coverage.TOLD_LEVELS` that it supports; None: no such columns.
            ridge: Forecasts of the ridge beside those of the model; None: no such column.

        Raises:
            OSError: It cannot be written.
        """
        import pyarrow
        from pyarrow import parquet

        # Parts of one job have one name, and those of another job another.
        self._job = str(distributed.gather_objects(os.getpid())[0])
        self._path, self._data, self._split = path, data, split
        self._calibration, self._ridge = calibration, ridge
        self._levels = [] if calibration is None else calibration.supported(TOLD_LEVELS)
        self.part = self._part(distributed.rank())
        self._waiting: list[Any] = []
        self._waiting_rows = 0
        floats = ["y", "forecast", *(["ridge"] if ridge is not None else [])]
        floats += [f"{side}-{level:g}" for level in self._levels for side in ("lo", "hi")]
        words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        self._schema = pyarrow.schema(
            [("unique_id", words), ("variate", words), ("cutoff", pyarrow.timestamp("ns")),
             ("ds", pyarrow.timestamp("ns")), ("step", pyarrow.int32()),
             *((name, pyarrow.float64()) for name in floats)]
        )  # fmt: skip
        self._writer: Any = parquet.ParquetWriter(self.part, self._schema, **_storage(self._schema))

    def __call__(self, batch: WindowBatch, forecast: Tensor) -> None:
        """Take the forecasts of a batch's valid windows. (V, H, N), standardised."""
        import pyarrow

        valid = len(forecast)
        ids = batch.window_ids[:valid].cpu().numpy()
        standardised = {"forecast": forecast.detach().double().cpu().numpy()}
        if self._ridge is not None:
            standardised["ridge"] = self._ridge(batch)[:valid].double().cpu().numpy()
        if self._calibration is not None:
            for level, lower, upper in self._calibration.intervals(
                batch, forecast, self._data, self._split, self._levels
            ):
                standardised |= {f"lo-{level:g}": lower, f"hi-{level:g}": upper}
        columns = self._rows(ids, standardised)
        table = pyarrow.table([columns[name] for name in self._schema.names], schema=self._schema)
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= ROWS_PER_GROUP:
            self._flush()

    def _rows(self, ids: np.ndarray, standardised: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Lay windows (V, H, N) out as rows: window, variate, step of the window's horizon."""
        import pyarrow

        windows, series_set = self._data.windows[self._split], self._data.series_set
        series_V, starts_V = windows.locate_batch(ids)
        steps_H = np.arange(windows.pred_len)
        num_variates, pred_len = windows.num_variates, windows.pred_len
        shape = len(ids), num_variates, pred_len
        scalers = [self._data.scalers[number] for number in series_V]
        mean_V1N = np.stack([scaler.mean for scaler in scalers])[:, None]
        scale_V1N = np.stack([scaler.scale for scaler in scalers])[:, None]
        first_V = starts_V + windows.seq_len
        dates_VH, cutoff_V, truth_VHN = [], [], []
        horizons_V1 = np.array([[windows.horizon_of(int(number))] for number in series_V])
        kept = np.broadcast_to((steps_H < horizons_V1)[:, None], shape).reshape(-1)
        for number, first, horizon in zip(series_V, first_V, horizons_V1, strict=True):
            one, rows = series_set.series[number], first + np.minimum(steps_H, horizon - 1)
            dates_VH.append(one.dates[rows])
            cutoff_V.append(one.dates[first - 1])
            truth_VHN.append(one.values[rows])

        def spread_out(values: np.ndarray) -> np.ndarray:
            return np.broadcast_to(values, shape).reshape(-1)[kept]

        def floats(values: np.ndarray) -> np.ndarray:
            return np.swapaxes(values, 1, 2).reshape(-1)[kept]

        number_of_series = spread_out(series_V.astype(np.int32)[:, None, None])
        number_of_variate = spread_out(np.arange(num_variates, dtype=np.int32)[None, :, None])
        ids_of_series = [one.id for one in series_set.series]
        columns: dict[str, Any] = {
            "unique_id": pyarrow.DictionaryArray.from_arrays(number_of_series, ids_of_series),
            "variate": pyarrow.DictionaryArray.from_arrays(
                number_of_variate, list(series_set.series[0].columns)
            ),
            "cutoff": spread_out(np.array(cutoff_V)[:, None, None]),
            "ds": spread_out(np.stack(dates_VH)[:, None]),
            "step": spread_out((steps_H + 1).astype(np.int32)[None, None]),
            "y": floats(np.stack(truth_VHN)),
        }
        for name, values_VHN in standardised.items():
            columns[name] = floats(values_VHN * scale_V1N + mean_V1N)
        return columns

    def _flush(self) -> None:
        import pyarrow

        if self._waiting:
            table = pyarrow.concat_tables(self._waiting)
            self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            self._waiting, self._waiting_rows = [], 0

    def finish(self) -> None:
        """Put the parts of all ranks together and give the file its name; collective.

        Raises:
            OSError: It cannot be written, or not all ranks write to the same disk.
            ValueError: A file of that name has appeared meanwhile; it stays as it is.
        """
        with distributed.agree_or_raise("Writing the forecasts"):
            self._flush()
            self._writer.close()
        with distributed.agree_or_raise("Writing the forecasts"):
            if distributed.is_main_rank():
                self._join()

    def _join(self) -> None:
        from pyarrow import parquet

        ranks = distributed.world_size()
        whole = self.part
        if ranks > 1:
            whole = self._part(ranks)
            parts = [self._part(rank) for rank in range(ranks)]
            missing = [part for part in parts if not part.exists()]
            if missing:
                raise FileNotFoundError(
                    f"--save_forecasts {self._path}: {missing[0].name} of another rank is not "
                    "there; name a folder that all ranks share."
                )
            try:
                with parquet.ParquetWriter(whole, self._schema, **_storage(self._schema)) as joined:
                    for part in parts:
                        file = parquet.ParquetFile(part)
                        for group in range(file.num_row_groups):
                            progress.mark()
                            joined.write_table(file.read_row_group(group).cast(self._schema))
            except BaseException:
                whole.unlink(missing_ok=True)
                raise
        _name_once(whole, self._path)

    def _part(self, number: int) -> Path:
        return self._path.with_name(f".{self._path.name}.{self._job}.{number}")

    def __enter__(self) -> "ForecastFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave nothing behind but the finished file."""
        if self._writer.is_open:
            self._writer.close()
        self.part.unlink(missing_ok=True)


def _storage(schema: Any) -> dict[str, Any]:
    """How columns are stored: words and numbers of windows by their code, floats byte by byte."""
    floats = [field.name for field in schema if str(field.type) == "double"]
    return {
        "compression": "zstd",
        "use_dictionary": ["unique_id", "variate", "cutoff", "step"],
        "use_byte_stream_split": floats,
    }


def _name_once(whole: Path, path: Path) -> None:
    """Give a finished file its name, unless another file has taken it.

    Raises:
        ValueError: It has been taken.
    """
    with whole.open("rb+") as file:
        os.fsync(file.fileno())
    try:
        os.link(whole, path)  # unlike a rename, never over another file
    except FileExistsError as error:
        raise ValueError(
            f"--save_forecasts {path}: has appeared meanwhile and is not overwritten; name "
            "another file."
        ) from error
    except OSError:  # a disk without hard links
        if path.exists():
            raise
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
