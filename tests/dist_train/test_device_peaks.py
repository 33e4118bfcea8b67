"""dist_train/device_peaks.py: a peak only for a device whose data sheet is known."""

import pytest

from dist_train.device_peaks import peak_flops
from launch.hardware import COMPUTE_SHARE, HARDWARE


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("Tesla T4", 65e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("Tesla T40", None),
        ("", None),
    ],
)
def test_a_peak_is_that_of_the_very_device(name: str, peak: float | None):
    assert peak_flops(name) == peak


def test_a_plan_counts_with_the_same_peaks():
    assert HARDWARE["h100"].flops == pytest.approx(COMPUTE_SHARE * 989e12)
    assert HARDWARE["t4"].flops == pytest.approx(COMPUTE_SHARE * 65e12)
