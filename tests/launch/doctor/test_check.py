"""launch/doctor/check.py: what a check is told about its rank."""

from tests.helpers.doctors import visit


def test_a_visit_knows_its_rank():
    assert (visit().rank, visit().world_size, visit().leftovers) == (0, 1, [])
