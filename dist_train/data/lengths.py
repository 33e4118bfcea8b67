"""Whether series are long enough for the windows that a run asks for.

Shape legend (this file):
    L  seq_len     H  pred_len
"""

from dataclasses import replace

from dist_train.data.config import DataConfig, DataError, TooShort
from dist_train.data.series import Series, SeriesSet
from dist_train.data.sources import Source
from dist_train.data.splits import Split, borders

_MOST_ROWS = 10**12


def num_windows(
    rows: int, seq_len: int, pred_len: int, context_before: bool, stride: int = 1
) -> int:
    """Count the windows of a split.

    Args:
        rows: Rows of the split.
        seq_len: Context length L.
        pred_len: Forecast length H.
        context_before: The context may come from before the split (validation and test):
            ``rows - H + 1`` windows; else ``rows - L - H + 1``.
        stride: Rows between the starts of windows.
    """
    free = rows - pred_len - (0 if context_before else seq_len)
    return free // stride + 1 if free >= 0 else 0


def fits(rows: dict[Split, tuple[int, int]], seq_len: int, pred_len: int) -> bool:
    """Whether there is a window in every split of a series."""
    lengths = {split: end - begin for split, (begin, end) in rows.items()}
    return lengths["train"] >= seq_len + pred_len and all(
        lengths[split] >= pred_len for split in ("val", "test")
    )


def long_enough(source: Source, config: DataConfig) -> Source:
    """Refuse series that are too short, or leave them out, as ``too_short`` of their source says.

    Raises:
        DataError: There is one, or nothing is left.
    """
    series_set, pred_len = source.series_set, config.horizon_of(source)
    rows = [
        borders(len(one.values), series_set.borders, f"series {one.id!r}")
        for one in series_set.series
    ]
    long = [fits(own, config.seq_len, pred_len) for own in rows]
    if source.too_short == "error":
        if not all(long):
            first = long.index(False)
            raise _too_short(series_set.series[first], rows[first], source, config)
        return source
    kept = tuple(one for one, is_long in zip(series_set.series, long, strict=True) if is_long)
    about = f"too short for data.seq_len={config.seq_len} and {_key(source)}={pred_len}"
    if not kept:
        raise DataError(
            f"all {len(long)} series are {about}: shorten them, or leave this source out."
        )
    note = []
    if len(kept) < len(long):
        note.append(f"{len(long) - len(kept)} of {len(long)} series are {about}, and left out")
    untrained = sum(
        is_long and not _has_window(_share(own["train"], source.percent, config), config, pred_len)
        for own, is_long in zip(rows, long, strict=True)
    )
    if untrained and source.percent:
        note.append(f"percent={source.percent} leaves {untrained} series no training window")
    if not note:
        return source
    notes = (*series_set.notes, "; ".join(note))
    return replace(source, series_set=replace(series_set, series=kept, notes=notes))


def oldest_rows(
    train: tuple[int, int],
    percent: int,
    config: DataConfig,
    where: str,
    too_short: TooShort,
    key: str = "data.percent",
    pred_len: int | None = None,
) -> tuple[int, int]:
    """A share of the training rows as Time-LLM's few-shot has it: of the possible starts.

    Args:
        train: Training rows [begin, end).
        percent: The share; 0: no row.
        config: ``seq_len`` and ``pred_len``.
        where: Which series, for messages.
        too_short: Whether a share without a window is an error, or no row.
        key: What states the share, for messages.
        pred_len: Steps that are forecast; None: those of ``config``.

    Raises:
        DataError: It is an error.
    """
    begin, end = _share(train, percent, config)
    pred_len = pred_len or config.pred_len
    if _has_window((begin, end), config, pred_len):
        return begin, end
    if percent and too_short == "error":
        raise DataError(
            f"{key}={percent} leaves {end} training rows of {where}, one "
            f"window needs {config.seq_len + pred_len}: raise it."
        )
    return begin, begin


def _share(train: tuple[int, int], percent: int, config: DataConfig) -> tuple[int, int]:
    begin, end = train
    return begin, (end - config.seq_len) * percent // 100 + config.seq_len


def _has_window(rows: tuple[int, int], config: DataConfig, pred_len: int) -> bool:
    return num_windows(rows[1] - rows[0], config.seq_len, pred_len, False) > 0


def _key(source: Source) -> str:
    """What states its horizon, for messages."""
    return "data.pred_len" if source.pred_len is None else "pred_len"


def _rows_needed(rows: int, series_set: SeriesSet, seq_len: int, pred_len: int) -> int | None:
    """The fewest rows, more than ``rows``, that shares cut into long enough splits."""

    def enough(count: int) -> bool:
        return fits(borders(count, series_set.borders), seq_len, pred_len)

    high = rows
    while not enough(high):
        high *= 2
        if high > _MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    # Shares are rounded, so a little fewer may do although one more does not.
    return next(count for count in range(max(rows + 1, high - 64), high + 1) if enough(count))


def _too_short(
    series: Series, rows: dict[Split, tuple[int, int]], source: Source, config: DataConfig
) -> DataError:
    series_set, seq_len = source.series_set, config.seq_len
    key, pred_len = _key(source), config.horizon_of(source)
    lengths = "/".join(str(end - begin) for begin, end in rows.values())
    if all(isinstance(part, int) for part in series_set.borders):
        remedy = "shorten them, or set data.splits"
    else:
        needed = _rows_needed(len(series.values), series_set, seq_len, pred_len)
        if needed is None:
            remedy = f"shorten data.seq_len or {key}, or raise the smallest of data.splits"
        else:
            remedy = f"{needed} rows are needed; bring more, or shorten data.seq_len or {key}"
    if config.sources is not None:
        remedy += ", or leave such series out with too_short: skip in their source"
    return DataError(
        f"series {series.id!r} has {len(series.values)} rows, split into {lengths} for train, "
        f"validation and test: too short for data.seq_len={seq_len} and {key}={pred_len} "
        f"(train needs {seq_len + pred_len}, the others {pred_len} each): {remedy}."
    )
