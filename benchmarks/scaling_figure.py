"""placeholder."""

from pathlib import Path


def save_scaling_figure(path: Path) -> None:
    raise NotImplementedError
