"""Settings of the memory bank: which windows it holds, and when it is built.

Free of torch, so that a configuration is read and refused before anything heavy is imported.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Which training windows become entries."""

    bank_stride: int = 1
    """Time steps between the starts of neighbouring entries."""

    num_samples: int | None = None
    """Entries sampled evenly over time and variates; none: all of them."""

    max_memory_size: int | None = None
    """Most entries the bank may hold; a larger bank is sampled evenly. None: no limit."""

    def __post_init__(self) -> None:
        if self.bank_stride < 1:
            raise ValueError(
                f"bank.bank_stride must be at least 1, got {self.bank_stride}: "
                "1 makes every training window an entry."
            )
        for key in ("num_samples", "max_memory_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(
                    f"bank.{key} must be at least 1, got {value}: leave it out for no limit, "
                    "or use gram.use_gram=false to build no memory."
                )

    @property
    def limit(self) -> int | None:
        """The most entries a bank of these settings has; None: as many as there are windows."""
        limits = [size for size in (self.num_samples, self.max_memory_size) if size is not None]
        return min(limits, default=None)
