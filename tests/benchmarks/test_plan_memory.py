"""What a plan predicts is what real DeepSpeed training takes, in three cases."""

import pytest

from benchmarks import plan_memory

TOLERANCE = 0.15


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", plan_memory.QUICK)
def test_memory_is_predicted(name: str, monkeypatch: pytest.MonkeyPatch):
    for variable, value in plan_memory.MALLOC.items():
        monkeypatch.setenv(variable, value)  # given back afterwards
    found = plan_memory.compare(name)
    assert abs(found["error"]) <= TOLERANCE, found


def test_cases_differ_in_what_matters():
    cases = plan_memory.CASES.values()
    assert {case.stage for case in cases} == {0, 1, 2, 3}
    for name in ("precision", "ranks", "architecture", "windows", "seq_len", "blocks", "width"):
        assert len({getattr(case, name) for case in cases}) > 1
    assert any(case.bank_entries for case in cases)
    assert any(case.backbone.get("load_in_4bit") for case in cases)
