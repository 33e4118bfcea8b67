"""benchmarks/rounding.py: floats alone, however deep they lie."""

from benchmarks.rounding import decimals, significant


def test_floats_are_rounded_wherever_they_lie():
    value = {"a": [123.456789, {1: 0.000123456}], "n": 123456, "text": "1.23456", "none": None}
    assert significant(value) == {
        "a": [123.5, {1: 0.0001235}], "n": 123456, "text": "1.23456", "none": None,
    }  # fmt: skip
    assert decimals(value, 4)["a"] == [123.4568, {1: 0.0001}]
    assert decimals(0.1234567, 6) == 0.123457
