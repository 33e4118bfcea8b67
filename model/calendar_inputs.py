"""What lets the anchor's weights change with the time of the year, or of the day.

Shape legend (this file):
    R  rows     L  seq_len     D  inputs     S  scales, see :func:`model.config.num_calendar_scales`
"""

import torch
from torch import Tensor

from model.config import DAY_HARMONICS, Calendar, num_calendar_scales


def calendar_inputs(calendar: Calendar, centred: Tensor, phase: Tensor) -> Tensor:
    """Make the inputs beside the window itself.

    The year: the window once more, times the cosine and times the sine of the time of year. The
    day: a constant and the first three harmonics of the time of day; and means of the newest 2, 4,
    8 steps and so on, up to the whole window, times the first two.

    Args:
        calendar: year or day.
        centred: Windows less what they are centred on. Shape (R, L), floating point.
        phase: Cosine and sine of the time of year, and of the time of day, of each window's last
            row. Shape (R, 4), of the same type.

    Returns:
        Shape (R, D), D as :func:`model.config.num_calendar_inputs` says.
    """
    if calendar == "year":
        return torch.cat([centred * phase[:, :1], centred * phase[:, 1:2]], dim=1)
    waves = day_waves(phase, DAY_HARMONICS)
    newest_RS = centred @ _newest(centred)
    return torch.cat(
        [torch.ones_like(waves[0]), *waves, *(newest_RS * wave for wave in waves[:4])], dim=1
    )


def day_waves(phase: Tensor, harmonics: int) -> list[Tensor]:
    """Cosine and sine of the time of day, of twice that, and so on. (R, 4) -> each (R, 1)."""
    angle_R1 = torch.atan2(phase[:, 3:4], phase[:, 2:3])
    return [
        wave(number * angle_R1)
        for number in range(1, harmonics + 1)
        for wave in (torch.cos, torch.sin)
    ]


def _newest(rows: Tensor) -> Tensor:
    """Weights of means over the newest 2, 4, 8, ... of L steps. Shape (L, S)."""
    seq_len = rows.shape[1]
    # Made on the device: a tensor from the host would stall a GPU at every step.
    powers_S = torch.arange(1, num_calendar_scales(seq_len) + 1, device=rows.device)
    steps_S = (2.0**powers_S).clamp(max=seq_len)
    age_L1 = seq_len - torch.arange(seq_len, device=rows.device)[:, None]
    return ((age_L1 <= steps_S) / steps_S).to(rows)
