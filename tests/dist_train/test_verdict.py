"""dist_train/verdict.py: the rank at fault, not those that wait for it."""

from typing import Any

import pytest

from dist_train.verdict import EXIT_HUNG, EXIT_LOST, GRACE_S, Seen, Verdict, died, judge
from tests.helpers.beats import beat

WATCHDOG_S = 60.0


def seen(*, silent_s: float = 0.0, failed_s: float = 0.0, **changes: Any) -> Seen:
    return Seen(beat=beat(**changes), silent_s=silent_s, failed_s=failed_s)


def judged(*ranks: Seen) -> tuple[str, int] | None:
    verdict = judge(dict(enumerate(ranks)), WATCHDOG_S)
    return None if verdict is None else (verdict.kind, verdict.rank)


def test_ranks_that_get_on_are_left_alone():
    assert judged(seen(), seen(idle_s=59), seen(silent_s=4)) is None


def test_the_one_that_entered_fewest_collectives_is_at_fault():
    waiting = seen(idle_s=61, exchanges=(8, 9))
    assert judged(waiting, seen(idle_s=60.5, exchanges=(7, 9)), waiting) == ("hung", 1)


def test_a_rank_that_waits_for_one_that_works_is_not_at_fault():
    assert judged(seen(exchanges=(7, 9)), seen(idle_s=500, exchanges=(8, 9))) is None


def test_patience_lengthens_the_limit():
    assert judged(seen(idle_s=61, patience=3)) is None
    assert judged(seen(idle_s=181, patience=3)) == ("hung", 0)


def test_of_ranks_in_one_collective_the_one_that_came_last_in_steps_or_first_to_rest_is_named():
    assert judged(seen(idle_s=61, step=3), seen(idle_s=61, step=2)) == ("hung", 1)
    early = seen(idle_s=61, marked_at=999.0)
    assert judged(seen(idle_s=61), early, seen(idle_s=61)) == ("hung", 1)


def test_silence_of_watchdog_s_ends_the_job():
    assert judged(seen(), seen(silent_s=59)) is None
    assert judged(seen(), seen(silent_s=60)) == ("silent", 1)


def test_a_silent_rank_is_at_fault_before_those_that_wait_in_the_same_collective():
    assert judged(seen(idle_s=60), seen(silent_s=59)) == ("silent", 1)


def test_where_a_connection_was_lost_silence_of_some_seconds_is_death():
    lost = seen(state="lost")
    assert judged(lost, seen(silent_s=GRACE_S - 1)) is None
    assert judged(lost, seen(silent_s=GRACE_S)) == ("died", 1)


def test_a_rank_that_failed_is_quoted_once_another_lost_it_or_after_a_while():
    failed = seen(state="failed", said="AssertionError: ours", silent_s=99)
    assert judged(seen(), failed) is None
    assert judged(seen(state="lost"), failed) == ("failed", 1)
    assert judged(seen(), seen(state="failed", failed_s=GRACE_S)) == ("failed", 1)
    assert judged(seen(state="failed"), failed) is None, "each has its own message"


def test_a_rank_that_waited_long_for_one_that_failed_is_not_at_fault():
    waiting = seen(idle_s=500, exchanges=(8, 9))
    assert judged(seen(state="failed"), waiting) is None
    assert judged(seen(state="failed", failed_s=GRACE_S), waiting) == ("failed", 0)


def test_ranks_that_have_left_are_not_missed():
    assert judged(seen(), seen(state="left", silent_s=999, idle_s=999, exchanges=(0, 0))) is None


LINES = {
    "hung": "rank 1 has made no progress for 60 s (step 13, backward): its stacks",
    "silent": "rank 1 has shown no sign of life for 60 s (step 13, backward): its process",
    "died": "rank 1 died in step 13, backward (no message of its own): a process",
    "failed": "rank 1 failed in step 13, backward: the host",
    "orphaned": "the host is gone, and the ranks stop without it (step 13, backward)",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_verdict_is_one_line_and_a_code_and_travels(kind: Any):
    verdict = Verdict(kind=kind, rank=1, place="step 13, backward", seconds=60.4, said="the host")
    assert verdict.line.startswith(LINES[kind])
    assert "\n" not in verdict.line
    assert verdict.code == (EXIT_HUNG if kind in ("hung", "silent") else EXIT_LOST)
    assert Verdict.from_text(verdict.to_text()) == verdict


def test_a_death_names_the_machine_to_look_at():
    assert "dmesg on host tells" not in died(1, beat(machine="other b c")).line
    assert "dmesg on other tells" in died(1, beat(machine="other b c")).line
