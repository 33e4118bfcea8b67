"""A trained forecaster, for users: load it, forecast frames, explain, hand it on.

The only place of this package that knows the others; they are imported when they are needed.

Shape legend (this file):
    B  windows     L  seq_len     N  variates     H  pred_len
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dist_train.frame_forecasts import Explanation
    from dist_train.loading import LoadedRun

Missing = Literal["error", "interpolate"]
Levels = Sequence[float] | npt.NDArray[Any]


class TimeLLM(nn.Module):
    """A trained forecaster, ready to forecast.

    Frames are wide (a date column and one column per variate) or long (``unique_id, ds, y``), of
    pandas or polars, with rows and columns in any order; results are of the same kind, in
    original units. Called like the published model, it is an ordinary module.
    """

    def __init__(self, run: "LoadedRun", folder: Path) -> None:
        """Wrap a loaded run; users call :meth:`from_pretrained`."""
        super().__init__()
        self.forecaster = run.module
        self._run = run
        self._folder = folder
        self.seq_len: int = run.config.data.seq_len
        self.pred_len: int = run.config.data.pred_len

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        backbone: str | Path | None = None,
    ) -> Self:
        """Load the folder of a run, or one that ``timellm export`` wrote.

        Args:
            folder: The run's best checkpoint is loaded. A run with a memory needs the data that
                it was trained on; an exported folder brings its memory along.
            device: Where to compute; None: the GPU, if there is one.
            backbone: Where the language model of an exported folder lies here; None: under the
                name that it was trained with, or in the folder.

        Returns:
            The forecaster, in eval mode.

        Raises:
            ValueError: Nothing is there, a file is damaged, or the backbone is not the one that it
                was trained with.
        """
        from dist_train.export import open_run

        # Also where it lies after this process has gone to another folder.
        place = Path(folder).expanduser().resolve()
        if not place.is_dir():
            raise ValueError(
                f"from_pretrained: {folder}: no such folder; give the folder of a run, or of an "
                "export. Nothing is downloaded."
            )
        name = None if backbone is None else str(backbone)
        model = cls(open_run(place, backbone=name), place)
        return model.eval() if device is None else model.eval().to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that :meth:`from_pretrained` loads without run and data.

        Args:
            folder: A new one; nothing is overwritten.

        Raises:
            ValueError: It holds something already.
        """
        from dist_train.export import export

        export(self._run, self._folder, Path(folder).expanduser(), told=f"folder={folder}")

    def predict(
        self,
        df: Any,
        horizon: int | None = None,
        level: Levels | None = None,
        *,
        missing: Missing = "error",
    ) -> Any:
        """Forecast what follows each series of a frame, all series in one call.

        Args:
            df: Histories of at least ``seq_len`` steps.
            horizon: Steps, at most ``pred_len`` or those of the series' source; None: all of these.
            level: Of the intervals, in percent; empty: no intervals; None: those of 80 and 95 that
                validation supports, and none, with a warning, once the weights were trained on.
            missing: ``interpolate`` fills missing values and skipped time stamps.

        Returns:
            ``unique_id, ds, TimeLLM, TimeLLM-lo-95, ...`` for a long frame, ``date, <variate>,
            <variate>-lo-95, ...`` for a wide one.

        Raises:
            ValueError: The frame, the horizon or a level cannot be used; says what to do.
        """
        from dist_train.frame_forecasts import predict_frame

        with self._evaluating():
            levels = self._run.choose_levels(level)
            return predict_frame(self._run, df, horizon=horizon, level=levels, missing=missing)

    def cross_validation(
        self,
        df: Any,
        n_windows: int = 1,
        step_size: int = 1,
        *,
        horizon: int | None = None,
        level: Levels | None = None,
        missing: Missing = "error",
    ) -> Any:
        """Forecast parts of a frame from what comes before them; the weights stay as they are.

        Args:
            df: Histories, longer than for :meth:`predict` by what is forecast.
            n_windows: Cutoffs of each series; the last leaves ``horizon`` steps to the end.
            step_size: Steps between cutoffs.
            horizon: As in :meth:`predict`, but one for all series of the frame; None: the most that
                all of them are forecast.
            level: As in :meth:`predict`.
            missing: As in :meth:`predict`, but only before the first row that a window reads:
                from there on, values would be filled from after a cutoff, and are refused.

        Returns:
            As :meth:`predict`, with ``cutoff``, the newest stamp that was seen, and the truth:
            ``y``, or ``<variate>-y``.

        Raises:
            ValueError: As :meth:`predict`.
        """
        from dist_train.frame_forecasts import cross_validate_frame

        with self._evaluating():
            return cross_validate_frame(
                self._run, df, n_windows=n_windows, step_size=step_size, horizon=horizon,
                level=self._run.choose_levels(level), missing=missing,
            )  # fmt: skip

    def explain(self, df: Any, *, missing: Missing = "error") -> "Explanation":
        """Say what the forecasts of a frame rest on.

        Args:
            df: As in :meth:`predict`.
            missing: As in :meth:`predict`.

        Returns:
            Frames ``rows`` (trend classes with probabilities, gate, match) and ``histories``
            (what the memory found, with dates, weights and distances), and both as objects.

        Raises:
            ValueError: As :meth:`predict`.
        """
        from dist_train.frame_forecasts import explain_frame

        with self._evaluating():
            return explain_frame(self._run, df, missing=missing)

    def plot(
        self,
        df: Any,
        path: str | Path,
        *,
        unique_id: str | int | None = None,
        level: Levels | None = None,
        missing: Missing = "error",
    ) -> None:
        """Draw a forecast with its intervals and what followed the histories found, as PNG.

        Args:
            df: As in :meth:`predict`.
            path: A new file.
            unique_id: Which series; None: the first by name.
            level: As in :meth:`predict`.
            missing: As in :meth:`predict`.

        Raises:
            ValueError: As :meth:`predict`, the file exists, or there is no such series.
        """
        from dist_train.frame_forecasts import plot_frame

        with self._evaluating():
            plot_frame(
                self._run, df, Path(path).expanduser(), unique_id=unique_id,
                level=self._run.choose_levels(level), missing=missing,
            )  # fmt: skip

    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        x_dec: Tensor | None = None,
        x_mark_dec: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Forecast windows as the published Time-LLM does, for experiment code written for it.

        With a memory all of it may be found, for it is not known where the windows lie in time:
        they have to be later than what it was trained on. Where there are several sources all
        windows count as those of the first.

        Args:
            x_enc: Windows on the scale of the training, standardised. Shape (B, L, N).
            x_mark_enc: Not read, nor are the following.
            x_dec: Not read.
            x_mark_dec: Not read.
            mask: Not read.

        Returns:
            On the scale of ``x_enc``. Shape (B, H, N), float32.

        Raises:
            ValueError: The shape does not fit, or it is trained although it has a memory, which
                would show training windows their own futures.
        """
        run = self._run
        if x_enc.ndim != 3 or x_enc.shape[1] != self.seq_len:
            raise ValueError(
                f"x_enc has shape {tuple(x_enc.shape)}: pass (B, L, N) with L = seq_len = "
                f"{self.seq_len}."
            )
        if self.training and run.retriever is not None:
            raise ValueError(
                "model.train(): this model has a memory of its training windows, and it is not "
                "known where x_enc lies in time, so it would be shown its own future: call "
                "model.eval(), or take a run trained with gram.use_gram=false."
            )
        context_BLN = x_enc.detach().float().cpu().contiguous()
        batch = run.batch_of(context_BLN.numpy()).to(x_enc.device)
        inputs = batch.inputs._replace(context=x_enc)
        retrieved = None
        if run.retriever is not None:
            size = len(x_enc)
            # Later than everything, so that nothing is hidden.
            later = run.retriever.bank.end_of_time
            neighbours = run.retriever.search(
                context_BLN,
                np.zeros(size, dtype=np.int64),
                np.full(size, later, dtype=np.int64),
                past_only=True,
            )
            retrieved = run.retriever.fetch(neighbours).to(x_enc.device)
        forecast: Tensor = self.forecaster(inputs, retrieved).forecast
        return forecast

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Forecast in eval mode whatever the mode is, and restore it."""
        before = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(before)
