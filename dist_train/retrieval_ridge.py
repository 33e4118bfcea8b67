"""Whether retrieval helps, answered by closed form before training: ridge with and without it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dist_train import distributed, progress
from dist_train.data.clock import without_clock
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.windows import ForecastData, Ints
from dist_train.evaluation import Forecast
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from model.anchor_fit import (
    LAMBDAS,
    NORMS,
    AnchorFit,
    GramAccumulator,
    anchor_of,
    fit_anchor,
)
from model.batch import from_rows, to_rows
from model.config import NO_EXTENSION, Extension, GramConfig
from model.linear_anchor import LinearAnchor, Norm
from model.shared_sums import SharedSums, with_all_steps

LAMBDAS_TRIED = (*LAMBDAS, 1e5)  # for both, so that neither has the wider choice

# Windows overlap, so an even sample says nearly as much as all of them, and costs fewer searches.
VAL_ROWS = 8192
CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class RetrievalVerdict:
    """The two ridges, fitted to the same sample of training windows of all sources."""

    without: AnchorFit
    with_retrieval: AnchorFit

    by_source: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Validation MSE of ridges of its own without and with retrieved futures, by name of the
    source; empty where there is one. One that no training sees has that of all the others."""

    own: tuple[AnchorFit, ...] = ()
    """The ridge of each source with retrieved futures, :attr:`with_retrieval` where no training
    sees it; empty where there is one."""

    @property
    def reading(self) -> tuple[AnchorFit, ...]:
        """The ridge with retrieved futures of each source."""
        return self.own or (self.with_retrieval,)

    @property
    def helps(self) -> bool:
        """Whether the ridge that reads the retrieved futures is better on validation, anywhere."""
        if self.by_source:
            return len(self.off) < len(self.by_source)
        return self.with_retrieval.validation_mse < self.without.validation_mse

    @property
    def off(self) -> tuple[str, ...]:
        """Names of the sources where it is not."""
        return tuple(
            name for name, (without, reading) in self.by_source.items() if reading >= without
        )


def judge_retrieval(
    data: ForecastData,
    gram: GramConfig,
    bank: BankConfig,
    train_rows: int,
    root: Path | None = None,
    *,
    extensions: Sequence[Extension] = (),
    start: AnchorFit | None = None,
) -> RetrievalVerdict:
    """Fit the ridge with and without the retrieved futures; collective.

    Retrieval uses the anchored key, which needs no training, whatever ``gram.retrieval_key`` is.

    Args:
        data: The series.
        gram: Number of neighbours and temperature.
        bank: Which windows can be retrieved.
        train_rows: Training windows of one variate that both are fitted to, evenly spread; of each
            source as many.
        root: Folder of the banks, see :class:`dist_train.retrieval.Retriever`. This one is
            deleted again where the run has a learned key, and so no use for it later.
        extensions: What both may read beside the window, of each source, as far as that is better
            on validation; beside ``start``, what its weights may. Empty: nothing. The ridges of all
            of several sources read none of it.
        start: Weights of the window alone that were solved on all windows, such as those of each
            variate. Both then are ridges of what these leave over, added to them, and centred as
            they are. None: both begin with nothing.
    """
    retriever = Retriever(data, replace(gram, retrieval_key="anchored"), bank, root)
    retriever.refresh({})
    by_source: dict[str, tuple[float, float]] = {}
    fits: dict[str, AnchorFit] = {}
    seq_len = data.windows["train"].seq_len
    several = len(data.sources) > 1
    extensions = extensions or [NO_EXTENSION] * len(data.sources)
    new_sums = partial(_Sums, data)
    if start is not None:
        before = anchor_of(start, seq_len=seq_len, extension=extensions[0])
        extensions = [NO_EXTENSION]
        new_sums = partial(_Sums, data, norms=(start.norm,), before=before)
    of_all = {False: SharedSums(), True: SharedSums()}
    for number, series in _judged_sources(data).items():
        num_steps = data.windows["train"].horizon_of(series.start)
        of_source = partial(new_sums, extensions[number], num_steps=num_steps)
        own = of_source(), of_source()
        for sums, split, rows in zip(own, ("train", "val"), (train_rows, VAL_ROWS), strict=True):
            limit = max(1, rows // data.num_variates)
            sums.add(retriever, split, data.windows[split].even_sample(limit, series))
            sums.join()
        if several:
            without, reading = (fit_anchor(*split, LAMBDAS_TRIED) for split in _by_reading(*own))
            name = data.sources[number].name
            by_source[name] = without.validation_mse, reading.validation_mse
            fits[name] = with_all_steps(reading, data.pred_len)
        for total, by_split in zip(of_all.values(), _by_reading(*own), strict=True):
            shared = [[one.only(NO_EXTENSION) for one in split] for split in by_split]
            total.add(*(shared if several else by_split))
    # Not before all have come this far: another rank may still have been reading the bank.
    if gram.retrieval_key != "anchored":
        retriever.builder.prune(set())
    retriever.close()
    without, reading = (total.fit(LAMBDAS_TRIED) for total in of_all.values())
    if start is not None:
        without, reading = (_added(start, fit, seq_len) for fit in (without, reading))
    if not several:
        return RetrievalVerdict(without=without, with_retrieval=reading)
    names = [one.name for one in data.sources]
    mse_of_all = without.validation_mse, reading.validation_mse
    for number in without_clock(data.sources):  # their windows get nothing
        of_none = by_source.get(names[number], mse_of_all)[0]
        by_source[names[number]] = of_none, of_none
    return RetrievalVerdict(
        without=without,
        with_retrieval=reading,
        by_source={name: by_source.get(name, mse_of_all) for name in names},
        own=tuple(fits.get(name, reading) for name in names),
    )


def anchor_forecast(
    anchor: LinearAnchor, retrieve: Callable[[WindowBatch, str], Tensor] | None, split: str
) -> Forecast:
    """Forecast with the closed form alone: the row that tells what training adds to it.

    Args:
        anchor: A solved anchor.
        retrieve: Forecasts by retrieval alone, see :meth:`Retriever.forecast`, with anchored keys;
            None: the anchor reads no retrieved future.
        split: Key of ``data.windows`` that the batches come from.
    """

    def forecast(batch: WindowBatch) -> Tensor:
        rows_RL = to_rows(batch.context)
        retrieved_RH = None
        if retrieve is not None:
            retrieved_RH = to_rows(retrieve(batch, split)).to(rows_RL.device)
        forecast_RH = anchor(rows_RL, retrieved_RH, batch.calendar_phase, batch.sources)
        return from_rows(forecast_RH, batch.context.shape[2])

    return forecast


class _Sums:
    """Sums over windows of what the two ridges read."""

    def __init__(
        self,
        data: ForecastData,
        extension: Extension = NO_EXTENSION,
        norms: Sequence[Norm] = NORMS,
        before: LinearAnchor | None = None,
        num_steps: int | None = None,
    ) -> None:
        self._before = before
        self.of = {
            reads: [
                GramAccumulator(
                    data.windows["train"].seq_len, data.pred_len, norm,
                    reads_future=reads, extension=extension, num_steps=num_steps,
                )
                for norm in norms
            ]
            for reads in (False, True)
        }  # fmt: skip
        """By whether it reads the retrieved futures: an accumulator for each norm."""

    def add(self, retriever: Retriever, split: str, ids: Ints) -> None:
        """Add this rank's share of some windows; collective, the ids are the same on all ranks."""
        windows = retriever.data.windows[split]
        ranks = distributed.world_size()
        mine = ids[distributed.rank() :: ranks]
        chunk = max(1, CHUNK_ROWS // windows.num_variates)
        # As many rounds on every rank, the last one empty on some: the search is collective.
        progress.enter(f"ridge with retrieval, {split}")
        for first in range(0, -(-len(ids) // ranks), chunk):
            progress.mark()
            batch = Collator(windows, None)([int(number) for number in mine[first : first + chunk]])
            context, target, retrieved = (
                to_rows(values)
                for values in (batch.context, batch.target, retriever.forecast(batch, split))
            )
            phase = batch.calendar_phase
            if self._before is not None:  # what it leaves over, from where the rows are centred
                before = self._before(context, calendar_phase=phase)
                target = target - before + self._before.centre(context)
            target = target[:, : self.of[False][0].num_steps]  # the rest is not known
            for reads, accumulators in self.of.items():
                for accumulator in accumulators:
                    accumulator.add(context, target, retrieved if reads else None, phase)

    def join(self) -> None:
        """Add up the shares of all ranks; collective."""
        for accumulators in self.of.values():
            for accumulator in accumulators:
                distributed.sum_in_place(accumulator.tensors)


def _judged_sources(data: ForecastData) -> dict[int, slice]:
    """Series of each source by its number, without those that no training sees."""
    return {number: data.series_of_sources[number] for number in data.trained_sources}


def _by_reading(
    train: _Sums, validation: _Sums
) -> list[tuple[list[GramAccumulator], list[GramAccumulator]]]:
    """Sums of training and validation without, then with the retrieved futures."""
    return [(train.of[reads], validation.of[reads]) for reads in (False, True)]


def _added(start: AnchorFit, fit: AnchorFit, seq_len: int) -> AnchorFit:
    """Weights of the window, and the ridge of what they leave over of it and more, as one."""
    window, extension = start.weight[..., :seq_len], start.weight[..., seq_len:]
    more = fit.weight[:, seq_len:].expand(len(window), -1, -1)
    return replace(
        fit,
        weight=torch.cat([window + fit.weight[:, :seq_len], more, extension], dim=-1),
        deviations=start.deviations,
        extension=start.extension,
    )
