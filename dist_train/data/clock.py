"""One clock for several series: which rows of two series lie at the same time. Free of torch.

Time stamps have no zone: they are compared as they are written, within a source and between
sources. Sources whose stamps were given in several zones, or as local time of several places, have
to be brought to one of them first, or a window could be shown its own future of the other source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dist_train.data.config import DataError
from dist_train.data.dates import Dates, continue_dates
from dist_train.data.series import SeriesSet
from dist_train.data.sources import Source, naming
from memory_index.timeline import Timeline

Ints = npt.NDArray[np.int64]


def clock_offsets(series_set: SeriesSet) -> Ints | None:
    """Find where each series begins on a clock that all of them share.

    Returns:
        Rows between the first time stamp of the set and that of each series. Shape (S,). Series
        whose irregular stamps are the same share them as they are; those of later stamps go on
        from there.
        None where there is no such clock: one series alone, or time stamps that are irregular or
        lie between those of another series. The rows of two series then say nothing about time.
    """
    if len(series_set.series) == 1:
        return None
    clock = shared_clock(series_set)
    return None if clock is None else clock.offsets


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedClock:
    """One clock for all series of a set, and when its rows are."""

    offsets: Ints
    """Row of the clock that each series begins at. Shape (S,)."""

    frequency: str | None

    runs: "Sequence[Dates | _Grid]"
    """Its rows, in runs that follow each other."""

    run_of_series: Ints
    """Number of the run that each series lies in. Shape (S,)."""

    @cached_property
    def timeline(self) -> Timeline:
        """When each row is; where series lie years apart, also the rows between them."""
        runs = [run.stamps() if isinstance(run, _Grid) else run for run in self.runs]
        following = [_after(dates, self.frequency) for dates in runs]
        return Timeline([_ns(dates) for dates in runs], following, self.run_of_series, self.offsets)


def shared_clock(series_set: SeriesSet) -> SharedClock | None:
    """Find when the rows of a set are, on one clock; for comparison with other sets.

    A row lasts from its stamp to the next one. The last one of a regular set as long as its
    frequency says, of an irregular one as long as the one before it.

    Returns:
        None where two series overlap in time and share no clock, see
        :func:`overlapping_without_clock`.
    """
    series, frequency = series_set.series, series_set.frequency
    grid = None if len(series) == 1 else _grid(series_set)
    if grid is not None:
        return SharedClock(
            offsets=grid.offsets, frequency=frequency, runs=[grid],
            run_of_series=np.zeros(len(series), dtype=np.int64),
        )  # fmt: skip
    groups = _groups(series_set)
    if _overlapping(series_set, groups) is not None:
        return None
    run_S, offsets_S = _end_to_end(series_set, groups)
    runs = [series[members[0]].dates for members in groups]
    return SharedClock(offsets=offsets_S, frequency=frequency, runs=runs, run_of_series=run_S)


def overlapping_without_clock(series_set: SeriesSet) -> tuple[str, str] | None:
    """Name two series that overlap in time although the set has no common clock; None: none do."""
    if len(series_set.series) == 1 or _grid(series_set) is not None:
        return None
    return _overlapping(series_set, _groups(series_set))


def check_clock(series_set: SeriesSet) -> None:
    """Refuse series among which a memory could not tell past from future.

    Raises:
        DataError: Two of them overlap in time and share no clock.
    """
    pair = overlapping_without_clock(series_set)
    if pair is not None:
        raise DataError(f"gram.use_gram=true: series {_fault(pair)}.")


def check_clocks(sources: Sequence[Source]) -> None:
    """As :func:`check_clock` of every source; of several, those are let pass that say it.

    Raises:
        DataError: One cannot have a memory, and its ``memory_percent`` is not 0.
    """
    if len(sources) == 1:
        check_clock(sources[0].series_set)
        return
    for number, source in enumerate(sources):
        pair = overlapping_without_clock(source.series_set) if source.memory_percent else None
        if pair is not None:
            with naming(number, source.name):
                raise DataError(
                    f"gram.use_gram=true: series {_fault(pair)}, or memory_percent: 0 in this "
                    "source, whose windows then get no neighbours."
                )


def _fault(pair: tuple[str, str]) -> str:
    return (
        f"{pair[0]!r} and {pair[1]!r} overlap in time but share no regular clock, so a window "
        "could be shown its own future in the other one: bring their time stamps onto one grid, or "
        "set gram.use_gram=false"
    )


def without_clock(sources: Sequence[Source]) -> list[int]:
    """Numbers of the sources that can have no memory: series overlap and share no clock."""
    sets = [source.series_set for source in sources]
    return [n for n, one in enumerate(sets) if overlapping_without_clock(one) is not None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Grid:
    """A regular clock."""

    first: np.datetime64
    last: np.datetime64
    frequency: str

    offsets: Ints
    """Row of the clock that each series begins at. Shape (S,)."""

    def stamps(self) -> Dates:
        """All of its rows, also those at which no series has one."""
        import pandas as pd

        stamps: Dates = pd.date_range(self.first, self.last, freq=self.frequency).to_numpy()
        return stamps


def _grid(series_set: SeriesSet) -> _Grid | None:
    """The regular clock that all series lie on; None: there is none."""
    if series_set.frequency is None:
        return None
    dates = [series.dates for series in series_set.series]
    first, last = min(part[0] for part in dates), max(part[-1] for part in dates)
    grid = _Grid(
        first=first, last=last, frequency=series_set.frequency,
        offsets=np.zeros(len(dates), dtype=np.int64),
    )  # fmt: skip
    step = _fixed_step(series_set.frequency)
    clock = None if step else grid.stamps()
    for number, part in enumerate(dates):
        if clock is not None:
            offset = int(np.searchsorted(clock, part[0]))
            on_clock = np.array_equal(clock[offset : offset + len(part)], part)
        else:  # never all rows of the clock: two series may be years apart
            assert step is not None
            offset, beside = divmod(int(_ns(part[:1])[0] - _ns(first[None])[0]), step)
            on_clock = not beside and bool((np.diff(_ns(part)) == step).all())
        if not on_clock:
            return None
        grid.offsets[number] = offset
    return grid


def _fixed_step(frequency: str) -> int | None:
    """Nanoseconds of a step; None for months and other steps of the calendar."""
    import pandas as pd

    offset = pd.tseries.frequencies.to_offset(frequency)
    if isinstance(offset, pd.offsets.Day):
        return int(offset.n * np.timedelta64(1, "D") / np.timedelta64(1, "ns"))
    return int(offset.nanos) if isinstance(offset, pd.offsets.Tick) else None


def _groups(series_set: SeriesSet) -> list[list[int]]:
    """Numbers of the series that have the same time stamps; groups in order of time."""
    known: dict[tuple[int, object, object], list[list[int]]] = {}
    for number, one in enumerate(series_set.series):
        alike = known.setdefault((len(one.dates), one.dates[0], one.dates[-1]), [])
        for members in alike:
            dates = series_set.series[members[0]].dates
            if dates is one.dates or np.array_equal(dates, one.dates):
                members.append(number)
                break
        else:
            alike.append([number])
    groups = [members for alike in known.values() for members in alike]
    return sorted(groups, key=lambda members: series_set.series[members[0]].dates.min())


def _overlapping(series_set: SeriesSet, groups: list[list[int]]) -> tuple[str, str] | None:
    """Two series of different groups, the first two in time, whose stamps overlap."""
    latest, *others = [series_set.series[members[0]] for members in groups]
    for one in others:
        if one.dates.min() <= latest.dates.max():
            return latest.id, one.id
        latest = one
    return None


def _end_to_end(series_set: SeriesSet, groups: list[list[int]]) -> tuple[Ints, Ints]:
    """Number of the group of each series, and row that it begins at where groups follow in rows."""
    stretch_S, offsets_S = np.zeros((2, len(series_set.series)), dtype=np.int64)
    row = 0
    for number, members in enumerate(groups):
        stretch_S[members], offsets_S[members] = number, row
        row += len(series_set.series[members[0]].dates)
    return stretch_S, offsets_S


def _after(dates: Dates, frequency: str | None) -> int:
    """The time stamp that comes after the last one, in nanoseconds since 1970."""
    if frequency is not None:
        return int(_ns(continue_dates(dates[-1], frequency, 1))[0])
    stamps = _ns(dates[-2:])
    return int(stamps[-1]) + max(1, int(stamps[-1] - stamps[0]))


def _ns(dates: Dates) -> Ints:
    """Time stamps as nanoseconds since 1970; a view where they are kept so."""
    return dates.astype("datetime64[ns]", copy=False).view(np.int64)
