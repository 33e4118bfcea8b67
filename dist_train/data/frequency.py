"""Whether series have the rhythm that a model was trained on."""

from dataclasses import replace

from dist_train.data.config import DataError
from dist_train.data.dates import follows, step_of
from dist_train.data.series import SeriesSet


def at_frequency(series_set: SeriesSet, expected: str | None, label: str) -> SeriesSet:
    """Refuse series of another frequency than the training's.

    Args:
        series_set: What is to be forecast.
        expected: As a pandas alias; None: irregular, then any will do.
        label: What the user calls the data, for messages.

    Returns:
        The same, to be continued at ``expected`` where all time stamps follow it: a few of them
        may follow several frequencies.

    Raises:
        DataError: They have another one; weeks may begin on another day.
    """
    found = series_set.frequency
    if expected is None or found is None or found == expected:
        return series_set
    if all(follows(one.dates, expected) for one in series_set.series):
        return replace(series_set, frequency=expected)
    first = series_set.series[0].dates
    if len(first) > 2 and step_of(found) is not None and step_of(found) == step_of(expected):
        return series_set  # weeks that begin on another day
    raise DataError(
        f"the time stamps of {label} have the frequency {found}, the model was trained on "
        f"{expected}: bring them to {expected}, or train a model for {found}."
    )
