from dataclasses import replace

import numpy as np
import pytest

from launch.hardware import HARDWARE, Link
from launch.simulation import fit_spread, simulate
from launch.step_time import step_time
from tests.launch.test_step_time import SEARCH, WORK

H100 = HARDWARE["h100"]
JITTERY = replace(H100, jitter=0.1)


def test_the_spread_of_drawn_times_is_found_again():
    times = np.random.default_rng(0).lognormal(-3, 0.07, 20_000)
    assert fit_spread(times.tolist()) == pytest.approx(0.07, rel=0.02)
    assert fit_spread([0.5, 0.5, 0.5]) == 0


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 0.0], [1.0, -1.0]])
def test_a_spread_needs_two_times(times: list[float]):
    with pytest.raises(ValueError, match="pass at least two times, all of them above 0"):
        fit_spread(times)


def test_a_job_of_one_step_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        simulate(WORK, H100, 2, steps=1)


@pytest.mark.parametrize("ranks", [1, 2, 8, 64, 1024])
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("sharing", [None, "rank", "world"])
@pytest.mark.parametrize("on_device", [True, False])
def test_without_spread_it_is_the_model(
    ranks: int, stage: int, sharing: str | None, on_device: bool
):
    search = None if sharing is None else replace(SEARCH, sharing=sharing)
    work = replace(WORK, zero_stage=stage, search=search, windows=64 * ranks)
    hardware = replace(H100, search_on_device=on_device)
    found = simulate(work, hardware, ranks, steps=20)
    model = step_time(work, hardware, ranks)
    assert found.mean_step_s == pytest.approx(model.total_s)
    assert found.windows_per_s == pytest.approx(model.windows_per_s)
    assert found.waited_s == pytest.approx(0)
    parts = 1 if stage == 0 else ranks  # one rank alone updates all parameters
    alone_work = replace(work, windows=64, optimizer_bytes=work.optimizer_bytes * parts)
    alone = step_time(alone_work, hardware, 1)
    assert found.efficiency == pytest.approx(model.windows_per_s / alone.windows_per_s / ranks)


@pytest.mark.parametrize("slow_link", [False, True])
def test_without_spread_it_is_the_model_where_cores_are_shared_and_links_are_slow(slow_link: bool):
    hardware = replace(H100, cores=4.0, search_on_device=False)
    if slow_link:
        hardware = replace(hardware, inter=Link(bytes_per_s=1e8, latency_s=1e-4))
    work = replace(WORK, zero_stage=3, search=SEARCH)
    found = simulate(work, hardware, 64, steps=20)
    assert found.mean_step_s == pytest.approx(step_time(work, hardware, 64).total_s)


def test_the_ranks_wait_for_the_slowest():
    """A simulation by another way: the mean of the largest of n draws."""
    work = replace(WORK, micro_batches=1)
    ranks, steps = 256, 400
    time = step_time(work, JITTERY, ranks)
    draws = np.random.default_rng(9).lognormal(-0.005, 0.1, (steps, ranks))
    expected = time.total_s + time.compute_s * (draws.max(axis=1).mean() - 1)
    found = simulate(work, JITTERY, ranks, steps=steps)
    assert found.mean_step_s == pytest.approx(expected, rel=0.02)
    waited = time.compute_s * (draws.max(axis=1).mean() - draws.mean())
    assert found.waited_s == pytest.approx(waited, rel=0.05)


def test_more_ranks_wait_longer_and_one_waits_for_none():
    waits = [simulate(WORK, JITTERY, ranks).waited_s for ranks in (1, 2, 16, 1024)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    lone = simulate(WORK, JITTERY, 1, steps=2000).mean_step_s
    assert lone == pytest.approx(step_time(WORK, H100, 1).total_s, rel=0.01)


def test_the_same_seed_is_the_same_job():
    first, again, other = (simulate(WORK, JITTERY, 16, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_search_that_is_ready_in_time_costs_nothing():
    host = replace(JITTERY, search_on_device=False, scan_bytes_per_s=1e13)
    with_search = simulate(replace(WORK, search=SEARCH), host, 16)
    assert with_search.mean_step_s == pytest.approx(simulate(WORK, host, 16).mean_step_s)
