"""Whether retrieval helps, answered by closed form before training: ridge with and without it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dist_train import distributed, progress
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Forecast
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from model.batch import from_rows, to_rows
from model.config import GramConfig
from model.linear_anchor import (
    LAMBDAS,
    NORMS,
    AnchorFit,
    GramAccumulator,
    LinearAnchor,
    Norm,
    fit_anchor,
)

LAMBDAS_TRIED = (*LAMBDAS, 1e5)  # for both, so that neither has the wider choice

# Windows overlap, so an even sample says nearly as much as all of them, and costs fewer searches.
VAL_ROWS = 8192
CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class RetrievalVerdict:
    """The two ridges, fitted to the same sample of training windows."""

    without: AnchorFit
    with_retrieval: AnchorFit

    @property
    def helps(self) -> bool:
        """Whether the ridge that reads the retrieved futures is better on validation."""
        return self.with_retrieval.validation_mse < self.without.validation_mse


def judge_retrieval(
    data: ForecastData,
    gram: GramConfig,
    bank: BankConfig,
    train_rows: int,
    root: Path | None = None,
    *,
    follows_year: bool = False,
) -> RetrievalVerdict:
    """Fit the ridge with and without the retrieved futures; collective.

    Retrieval uses the anchored key, which needs no training, whatever ``gram.retrieval_key`` is.

    Args:
        data: The series.
        gram: Number of neighbours and temperature.
        bank: Which windows can be retrieved.
        train_rows: Training windows of one variate that both are fitted to, evenly spread.
        root: Folder of the banks, see :class:`dist_train.retrieval.Retriever`. This one is
            deleted again where the run has a learned key, and so no use for it later.
        follows_year: Weights of both may change with the time of year, where that is better on
            validation.
    """
    retriever = Retriever(data, replace(gram, retrieval_key="anchored"), bank, root)
    retriever.refresh({})
    sums = {
        (split, reads): [_empty(data, norm, reads, follows_year) for norm in NORMS]
        for split in ("train", "val")
        for reads in (False, True)
    }
    for split, limit in (("train", train_rows), ("val", VAL_ROWS)):
        _accumulate(retriever, split, limit, sums[split, False], sums[split, True])
    for accumulators in sums.values():
        for accumulator in accumulators:
            distributed.sum_in_place(accumulator.tensors)
    # Not before all have come this far: another rank may still have been reading the bank.
    if gram.retrieval_key != "anchored":
        retriever.builder.prune(set())
    retriever.close()
    return RetrievalVerdict(
        without=fit_anchor(sums["train", False], sums["val", False], LAMBDAS_TRIED),
        with_retrieval=fit_anchor(sums["train", True], sums["val", True], LAMBDAS_TRIED),
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
        forecast_RH = anchor(rows_RL, retrieved_RH, batch.year_phase)
        return from_rows(forecast_RH, batch.context.shape[2])

    return forecast


def _empty(
    data: ForecastData, norm: Norm, reads_future: bool, follows_year: bool
) -> GramAccumulator:
    windows = data.windows["train"]
    return GramAccumulator(
        windows.seq_len, windows.pred_len, norm,
        reads_future=reads_future, follows_year=follows_year,
    )  # fmt: skip


def _accumulate(
    retriever: Retriever,
    split: str,
    limit: int,
    without: list[GramAccumulator],
    with_retrieval: list[GramAccumulator],
) -> None:
    """Add this rank's share of an even sample of windows to both kinds of sums."""
    windows = retriever.data.windows[split]
    ids = windows.even_sample(max(1, limit // windows.num_variates))
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
        for accumulator in without:
            accumulator.add(context, target, None, batch.year_phase)
        for accumulator in with_retrieval:
            accumulator.add(context, target, retrieved, batch.year_phase)
