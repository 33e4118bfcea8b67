"""Which number type the model computes in."""

import time

import torch
import torch.nn.functional as F

from dist_train import distributed
from dist_train.config import Precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# bf16 on a CPU is taken where it wins clearly: 6-13 times with AMX units, 2.3 times with AVX-512
# (a whole step then 1.5 times), below 1 without either.
CPU_MIN_SPEEDUP = 1.5


def resolve_dtype(precision: Precision) -> torch.dtype:
    """Choose the compute type, the same on every rank; collective.

    ``auto`` takes bf16 on GPUs that have it and fp16 on older ones. On a CPU it measures one
    matrix product on rank 0 (20 ms) and takes bf16 where that is at least 1.5 times as fast.
    """
    if precision != "auto":
        return DTYPES[precision]
    if torch.cuda.is_available():
        # Emulated, as on a T4, it is slower than float32.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    use_bf16 = torch.zeros(1)
    if distributed.is_main_rank():
        speedup = _product_time_s(torch.float32) / _product_time_s(torch.bfloat16)
        use_bf16[0] = speedup >= CPU_MIN_SPEEDUP
    return torch.bfloat16 if bool(distributed.broadcast(use_bf16)[0]) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Name a compute type as the configuration does."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def _product_time_s(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        F.linear(left, right)
        times.append(time.perf_counter() - started)
    return min(times)
