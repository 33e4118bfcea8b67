"""Configuration files: read so that they load back equal, or refused with the key or the file."""

from tests.fuzz.trials import assert_no_fault


def test_whatever_lies_in_a_configuration_is_read_or_refused():
    assert_no_fault("config", 300)
