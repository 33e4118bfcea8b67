import pytest

from launch.hardware import COMPUTE_SHARE, HARDWARE, LINK_SHARE


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_a_preset_has_rates_of_its_kind(name: str):
    hardware = HARDWARE[name]
    assert 1e12 < hardware.flops < 1e15
    assert 8 < hardware.memory_gib < 256
    # A node's own links are the faster ones, and the host's network is the slowest of all.
    assert hardware.intra.bytes_per_s > hardware.inter.bytes_per_s >= hardware.host.bytes_per_s
    assert hardware.intra.latency_s < hardware.inter.latency_s < hardware.host.latency_s
    assert hardware.cores is None
    assert hardware.trees
    assert hardware.search_on_device


def test_the_published_rates_of_an_h100_are_in_its_preset():
    hardware = HARDWARE["h100"]
    assert hardware.flops / COMPUTE_SHARE == pytest.approx(989e12)
    assert hardware.memory_bytes_per_s / LINK_SHARE == pytest.approx(3.35e12)
    assert hardware.intra.bytes_per_s / LINK_SHARE == pytest.approx(450e9)
    assert hardware.inter.bytes_per_s / LINK_SHARE == pytest.approx(400e9 / 8)
