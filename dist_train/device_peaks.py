"""What GPUs can compute at most, by the vendors' data sheets; free of torch.

Dense products in bf16 or fp16 with float32 sums, without sparsity.
"""

PEAKS = {
    "h200": 989e12,  # NVIDIA H200 data sheet, SXM
    "h100": 989e12,  # NVIDIA H100 data sheet, SXM
    "a100": 312e12,  # NVIDIA A100 data sheet
    "t4": 65e12,  # NVIDIA T4 data sheet, fp16
}
"""FLOP/s, by a word in the name of a device."""

SLOWER = {"pcie": ("h100", "h200"), "nvl": ("h100", "h200")}
"""Words that make a device of these names another, slower one."""


def peak_flops(device_name: str) -> float | None:
    """Peak of a device by the name that torch gives it, in FLOP/s; None: not known.

    Args:
        device_name: Such as ``NVIDIA H100 80GB HBM3``.
    """
    words = device_name.lower().replace("-", " ").split()
    for key, peak in PEAKS.items():
        if key in words:
            slower = any(word in words and key in named for word, named in SLOWER.items())
            return None if slower else peak
    return None
