"""CSV files: finite windows come out, or the refusal names the file, the column or the key."""

from tests.fuzz.trials import assert_no_fault


def test_whatever_lies_in_a_csv_file_is_read_or_refused():
    assert_no_fault("csv", 300)
