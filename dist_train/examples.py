"""Windows of the test split with their forecasts, for the pictures of a run.

Shape legend (this file):
    L  seq_len   H  pred_len   N  variates   K  neighbours
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed
from dist_train.baselines import ridge_forecast
from dist_train.conformal import Calibration
from dist_train.coverage import TOLD_LEVELS
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.prompts import PromptBuilder
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Forecast
from dist_train.figures.forecast import ForecastExample
from dist_train.figures.samples import ForecastSample, RetrievedHistory
from dist_train.retrieval import Retriever
from model.anchor_fit import AnchorFit
from model.instance_norm import normalize

MAX_NEIGHBOURS = 3


class ExampleMaker:
    """Forecasts single windows of the test split; every method is collective."""

    def __init__(
        self,
        forecast: Forecast,
        ridge: Sequence[AnchorFit],
        data: ForecastData,
        *,
        prompt_builder: PromptBuilder | None = None,
        retriever: Retriever | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Take what forecasts are made of.

        Args:
            forecast: The whole model, on the test split.
            ridge: Drawn beside it: that of each source.
            data: The series.
            prompt_builder: Makes the prompts; None: none.
            retriever: The memory; None: none.
            calibration: Makes the intervals; None: none.
        """
        self._forecast, self._ridge, self._data = forecast, ridge_forecast(*ridge), data
        self._retriever, self._calibration = retriever, calibration
        self._windows = data.windows["test"]
        self._collate = Collator(self._windows, prompt_builder)

    def middle(self) -> ForecastExample:
        """The middle window of the split, without intervals."""
        example, _ = self._example(len(self._windows) // 2, levels=())
        return example

    def samples(self) -> list[ForecastSample]:
        """Three windows a quarter of the split apart, of the first, middle and last variate."""
        places = [len(self._windows) * quarter // 4 for quarter in (1, 2, 3)]
        count = self._data.num_variates
        variates = (0, count // 2, count - 1)
        samples = []
        for window, variate in zip(dict.fromkeys(places), variates, strict=False):
            example, batch = self._example(window, levels=TOLD_LEVELS)
            neighbours = self._neighbours(batch, variate)
            samples.append(ForecastSample(example=example, variate=variate, neighbours=neighbours))
        return samples

    def _example(
        self, window: int, levels: tuple[float, ...]
    ) -> tuple[ForecastExample, WindowBatch]:
        batch = self._collate([window]).to(distributed.device())
        with torch.no_grad():
            forecasts = {"Time-LLM": self._forecast(batch), "ridge": self._ridge(batch)}
        number, start = self._windows.locate(window)
        scaler, series = self._data.scalers[number], self._data.series_set.series[number]
        horizon = self._windows.horizon_of(number)
        end = start + self._windows.seq_len + horizon

        def original(values: Tensor) -> np.ndarray:
            return np.asarray(scaler.inverse(values[0].double().cpu().numpy()))

        intervals = {}
        if self._calibration is not None:
            for level, lower, upper in self._calibration.intervals(
                batch, forecasts["Time-LLM"], self._data, "test", levels
            ):
                low, high = lower[0, :horizon], upper[0, :horizon]
                intervals[level] = scaler.inverse(low), scaler.inverse(high)
        is_one_of_many = len(self._data.scalers) > 1 and self._data.num_variates == 1
        example = ForecastExample(
            dates=series.dates[start:end],
            history=original(batch.context),
            truth=original(batch.target[:, :horizon]),
            forecasts={name: original(values[:, :horizon]) for name, values in forecasts.items()},
            columns=(series.id,) if is_one_of_many else series.columns,
            intervals=intervals,
        )
        return example, batch

    def _neighbours(self, batch: WindowBatch, variate: int) -> list[RetrievedHistory]:
        """The nearest histories of one row that lie a horizon apart, on the row's own scale."""
        retriever = self._retriever
        if retriever is None:
            return []
        found = retriever.search_batch(batch, "test")
        bank, anchored = retriever.bank, retriever.gram.retrieval_key == "anchored"
        ids_K = self._apart(retriever, found.ids[variate][found.ids[variate] >= 0])
        mode: Literal["last", "mean"] = "last" if anchored else "mean"
        histories_1LK, _, _ = normalize(bank.windows(ids_K).T[None], mode)
        futures_KH = bank.futures(ids_K, anchored=anchored)
        row_1L1 = batch.context[:, :, variate : variate + 1].cpu()
        _, loc, scale = normalize(row_1L1, mode)
        number, _ = self._windows.locate(int(batch.window_ids[0]))
        scaler = self._data.scalers[number]
        futures_KH = futures_KH[:, : self._windows.horizon_of(number)]
        entries = torch.stack(bank.places(ids_K), dim=1).tolist()
        neighbours = []
        for place, (series_number, start, column) in enumerate(entries):
            series = self._data.series_set.series[series_number]
            whole = torch.cat([histories_1LK[0, :, place], futures_KH[place]])
            standardised = (whole * scale.flatten() + loc.flatten()).double().numpy()
            values = standardised * scaler.scale[variate] + scaler.mean[variate]
            first = np.datetime_as_string(series.dates[start + bank.seq_len], unit="m")
            several = len(self._data.scalers) > 1
            what = series.id if several else series.columns[column]
            neighbours.append(
                RetrievedHistory(name=f"{first.replace('T', ' ')}, {what}", values=values)
            )
        return neighbours

    def _apart(self, retriever: Retriever, ids: Tensor) -> Tensor:
        """Of ids, nearest first, keep such as differ in variate or by a horizon in time."""
        bank, kept = retriever.bank, list[int]()
        places = torch.stack(bank.places(ids), dim=1).tolist()
        for number, (series, start, variate) in enumerate(places):
            if len(kept) < MAX_NEIGHBOURS and not any(
                (other_series, other_variate) == (series, variate)
                and abs(other_start - start) < bank.pred_len
                for other_series, other_start, other_variate in (places[one] for one in kept)
            ):
                kept.append(number)
        return ids[torch.tensor(kept, dtype=torch.int64)]
