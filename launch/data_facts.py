"""How much data a run has: variates, windows, entries of its memory bank. Free of torch."""

from dataclasses import dataclass

from dist_train.config import ConfigError, RunConfig
from dist_train.data.catalog import CATALOG
from dist_train.data.clock import without_clock
from dist_train.data.config import DataError
from dist_train.data.lengths import num_windows
from dist_train.data.splits import borders
from dist_train.data.windows import load_forecast_data

# Rows and variates of the published files that need not be at hand. Source: Autoformer, Wu et al.
# 2021 (arXiv:2106.13008), and its packed files.
PUBLISHED_SIZES = {
    "ETTh1": (17420, 7), "ETTh2": (17420, 7), "ETTm1": (69680, 7), "ETTm2": (69680, 7),
    "weather": (52696, 21), "electricity": (26304, 321), "traffic": (17544, 862),
    "exchange_rate": (7588, 8), "illness": (966, 7),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a plan needs of the data."""

    num_variates: int
    """Rows of a window."""

    train_windows: int
    bank_entries: int
    """Of the memory bank, limits respected; 0 without a memory."""

    source: str
    """Where the sizes come from, for the tables."""


def data_facts(
    config: RunConfig, *, variates: int | None = None, rows: int | None = None
) -> DataFacts:
    """Measure the data of a run, else take what is known of the published file, or stated.

    Args:
        config: The run.
        variates: Stated number of variates; with ``rows`` no file is read.
        rows: Stated rows of one wide series.

    Raises:
        ConfigError: One of both is given alone, or there are too few rows for a window.
        DataError: The data are neither here nor known.
    """
    if (variates is None) != (rows is None):
        raise ConfigError("--num_variates and --num_rows belong together: give both.")
    if variates is not None and rows is not None:
        return _of_size(config, rows, variates, f"stated: {rows} rows of {variates} variates")
    try:
        data = load_forecast_data(config.data)
    except DataError as error:
        known = PUBLISHED_SIZES.get(config.data.dataset)
        if config.data.sources or config.data.path is not None or known is None:
            raise DataError(f"{error} Or state its size: --num_variates and --num_rows.") from error
        return _of_size(config, *known, f"{config.data.dataset} as published, not read")
    train = data.windows["train"]
    silent = without_clock(data.sources) if len(data.sources) > 1 else []
    entries = sum(
        data.only(number).num_entries(config.bank.bank_stride)
        for number in range(len(data.sources))
        if number not in silent
    )
    return DataFacts(
        num_variates=train.num_variates,
        train_windows=len(train),
        bank_entries=limited(config, entries),
        source=f"read: {config.data.label}",
    )


def _of_size(config: RunConfig, rows: int, variates: int, source: str) -> DataFacts:
    data = config.data
    known = None if data.path is not None else CATALOG.get(data.dataset)
    shares = known.borders if known is not None and source.endswith("not read") else None
    split = tuple(data.splits) if data.splits else (shares or (0.7, 0.1, 0.2))
    begin, end = borders(rows, split)["train"]  # type: ignore[arg-type]
    end = (end - data.seq_len) * data.percent // 100 + data.seq_len
    windows = num_windows(end - begin, data.seq_len, data.pred_len, False, data.train_stride)
    if windows < 1 or variates < 1:
        raise ConfigError(
            f"--num_rows={rows}, --num_variates={variates}: leaves no training window of "
            f"{data.seq_len + data.pred_len} rows: state more, or shorten data.seq_len."
        )
    entries = variates * num_windows(
        end - begin, data.seq_len, data.pred_len, False, config.bank.bank_stride
    )
    return DataFacts(
        num_variates=variates,
        train_windows=windows,
        bank_entries=limited(config, entries),
        source=source,
    )


def limited(config: RunConfig, entries: int) -> int:
    """Entries that a bank of a run's settings has, of so many; 0 without a memory."""
    if config.gram.use_gram is False:
        return 0
    return entries if config.bank.limit is None else min(entries, config.bank.limit)
