"""From window numbers to a batch on a device, in worker processes.

Shape legend (this file):
    B  windows     L  seq_len     T  prompt tokens
    N  variates    H  pred_len    R  B * N rows
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import EvaluationBatch
from dist_train.data.windows import WindowSet
from model.batch import ForecastInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowBatch:
    """Some windows, with their prompts."""

    context: Tensor
    """Standardised. Shape (B, L, N), float32."""

    target: Tensor
    """Standardised; NaN beyond the horizon of a window's source. Shape (B, H, N), float32."""

    window_ids: Tensor
    """Their numbers in the window set. Shape (B,), int64."""

    num_valid: int
    """Windows that count, from the first on; the rest are repeats (see EvaluationBatch)."""

    prompt_ids: Tensor | None = None
    """Shape (R, T), int64; None: no prompt."""

    prompt_mask: Tensor | None = None
    """True where there is a token. Shape (R, T), bool; None: no prompt."""

    calendar_phase: Tensor | None = None
    """Cosine and sine of the time of year, then of the time of day, of the context's last row.
    Shape (B, 4), float32; None: not known."""

    sources: Tensor | None = None
    """Number of each window's source. Shape (B,), int64; None: there is one."""

    @property
    def inputs(self) -> ForecastInputs:
        """The part that the model may see."""
        return ForecastInputs(
            context=self.context,
            prompt_ids=self.prompt_ids,
            prompt_mask=self.prompt_mask,
            calendar_phase=self.calendar_phase,
            sources=self.sources,
        )

    def to(self, device: torch.device | str) -> "WindowBatch":
        """Copy to a device, without waiting where the memory is pinned."""
        return replace(
            self,
            **{name: t.to(device, non_blocking=True) for name, t in self._tensors().items()},  # type: ignore[arg-type]
        )

    def pin_memory(self) -> "WindowBatch":
        """Copy to page-locked memory; the DataLoader finds this method by its name."""
        return replace(self, **{name: t.pin_memory() for name, t in self._tensors().items()})  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class Collator:
    """Cut the windows of a batch and write their prompts. Picklable."""

    def __init__(self, windows: WindowSet, prompt_builder: PromptBuilder | None) -> None:
        self.windows = windows
        self.prompt_builder = prompt_builder

    def __call__(self, ids: list[int] | EvaluationBatch) -> WindowBatch:
        """Make one batch.

        Args:
            ids: Window numbers; an EvaluationBatch also says how many of them count.
        """
        if isinstance(ids, EvaluationBatch):
            numbers, num_valid = ids.ids, ids.num_valid
        else:
            numbers, num_valid = ids, len(ids)
        contexts, targets = self.windows.batch(numbers)
        sources = self.windows.source_of(numbers)
        prompts = None
        if self.prompt_builder is not None:
            prompts = self.prompt_builder(contexts, sources)
        prompt_ids, prompt_mask = prompts if prompts is not None else (None, None)
        calendar_phase = self.windows.calendar_phase(numbers)
        return WindowBatch(
            context=torch.from_numpy(contexts),
            target=torch.from_numpy(targets),
            window_ids=torch.tensor(numbers, dtype=torch.int64),
            num_valid=num_valid,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            calendar_phase=None if calendar_phase is None else torch.from_numpy(calendar_phase),
            sources=torch.from_numpy(sources),
        )


class _Batches(Dataset[WindowBatch]):
    """Hand what the sampler yields to the collator, inside the worker."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __getitem__(self, ids: list[int] | EvaluationBatch) -> WindowBatch:
        return self.collator(ids)


def make_loader(
    windows: WindowSet,
    sampler: Iterable[list[int]] | Iterable[EvaluationBatch],
    prompt_builder: PromptBuilder | None,
    num_workers: int,
) -> "DataLoader[WindowBatch]":
    """Prepare batches ahead of their use.

    Workers start anew with each iteration, so a position set on the sampler is always seen.

    Args:
        windows: What the numbers mean.
        sampler: Yields the numbers of each batch.
        prompt_builder: Writes the prompts; None: no prompts.
        num_workers: Processes; 0 prepares batches in this one.
    """
    if num_workers:
        _end_workers_at_exit()
    return DataLoader(
        _Batches(Collator(windows, prompt_builder)),
        batch_size=None,  # the sampler already yields whole batches
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # typed for lists of samples
        prefetch_factor=2 if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if num_workers else None,
        # Of its own: it draws a seed each time it starts, and must not draw from the training's.
        generator=torch.Generator(),
    )


def _as_it_is(batch: WindowBatch) -> WindowBatch:
    return batch


def _start_worker(worker: int) -> None:
    """Leave signals to the rank; stop the tokenizer's threads, which do not survive a fork."""
    # SIGTERM too: a launcher sends it to every process below it, and the rank still needs batches
    # to finish its step. The rank ends its workers itself.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@cache
def _end_workers_at_exit() -> None:
    # Runs before multiprocessing's own, which sends SIGTERM and waits for ever.
    atexit.register(_end_workers)


def _end_workers() -> None:
    # The loader's handler takes a worker's end for a crash and would raise wherever Python is now.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
