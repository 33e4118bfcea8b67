"""Numbers as the last line of a benchmark shows them."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def significant(value: T) -> T:
    """Round every float within lists and dictionaries to four significant digits."""
    found: T = _each(value, lambda number: float(f"{number:.4g}"))
    return found


def decimals(value: T, places: int) -> T:
    """Round every float within lists and dictionaries to so many places behind the point."""
    found: T = _each(value, lambda number: round(number, places))
    return found


def _each(value: Any, rounded: Callable[[float], float]) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list):
        return [_each(item, rounded) for item in value]
    if isinstance(value, dict):
        return {key: _each(item, rounded) for key, item in value.items()}
    return value
