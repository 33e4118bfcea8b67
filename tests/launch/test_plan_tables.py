"""Tables of a plan: aligned, and with units."""

import pytest

from launch.plan_tables import gib, seconds, table


def test_columns_are_aligned():
    lines = table(("name", "GiB"), [("a", "1.00"), ("longer", "22.50")])
    assert lines == ["name      GiB", "a        1.00", "longer  22.50"]


@pytest.mark.parametrize(("value", "text"), [
    (0.00144, "1.44 ms"), (1.5, "1.5 s"), (600, "10 min"), (10800, "3 h"),
])  # fmt: skip
def test_seconds_have_a_unit_that_suits(value: float, text: str):
    assert seconds(value) == text


def test_bytes_are_gib():
    assert gib(3 * 2**29) == "1.50"
