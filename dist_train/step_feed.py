"""What each optimizer step is fed: its micro-batches, and their neighbours, searched for ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future

from dist_train.data.collate import WindowBatch, make_loader
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import WindowSet
from dist_train.profiler import NoProfiler
from dist_train.retrieval import Retriever
from model.batch import RetrievedWindows
from model.config import GramConfig

Neighbours = list[Future[RetrievedWindows]]


class RefreshSchedule:
    """After which steps the memory is encoded anew, and after which the new keys are searched."""

    def __init__(self, gram: GramConfig, steps_per_epoch: int, *, enabled: bool) -> None:
        never = gram.refresh_every == "never"
        self._every = gram.refresh_every if isinstance(gram.refresh_every, int) else steps_per_epoch
        lag = self._every // 4 if gram.refresh_lag is None else gram.refresh_lag
        self.lag = min(lag, self._every - 1)
        self._enabled = enabled and not never

    def begins_after(self, step: int) -> bool:
        """Whether the encoder of this step makes new keys."""
        return self._enabled and step > 0 and step % self._every == 0

    def swaps_after(self, step: int) -> bool:
        """Whether new keys are searched from the step after this one on."""
        return self.begins_after(step - self.lag)


def micro_batches(
    windows: WindowSet,
    sampler: GlobalBatchSampler,
    prompt_builder: PromptBuilder | None,
    *,
    num_workers: int,
    max_epochs: int,
    first_step: int,
    profiler: NoProfiler,
) -> Iterator[list[WindowBatch]]:
    """Yield the micro-batches of one optimizer step after the other, epoch after epoch.

    Args:
        windows: What the sampler's numbers mean.
        sampler: Its position is moved.
        prompt_builder: Writes the prompts; None: no prompts.
        num_workers: Processes that prepare batches.
        max_epochs: Passes over the windows.
        first_step: Optimizer steps that are done already.
        profiler: Told of the time that waiting takes.
    """
    first_epoch, done = divmod(first_step, sampler.steps_per_epoch)
    for epoch in range(first_epoch, max_epochs):
        sampler.set_position(epoch, done if epoch == first_epoch else 0)
        loader = make_loader(windows, sampler, prompt_builder, num_workers)
        batches: list[WindowBatch] = []
        for batch in profiler.iterate("data loading", loader):
            batches.append(batch)
            if len(batches) == sampler.accumulation_steps:
                yield batches
                batches = []


def with_neighbours(
    steps: Iterator[list[WindowBatch]],
    retriever: Retriever | None,
    swaps_after: Callable[[int], bool],
    *,
    first_step: int,
    total_steps: int,
) -> Iterator[tuple[list[WindowBatch], Neighbours | None]]:
    """Yield each step's micro-batches and their neighbours, searched for while the last one ran.

    Not before the memory is swapped: a step sees the memory that its number says, however fast
    the search is, so a run is the same each time.
    """
    if retriever is None:
        yield from ((batches, None) for batches in steps)
        return
    step = first_step
    batches = next(steps, None)
    ahead: Neighbours | None = None
    while batches is not None:
        current = ahead or [retriever.retrieve_ahead(batch, "train") for batch in batches]
        following = next(steps, None) if step + 1 < total_steps else None
        ahead = None
        if following is not None and not swaps_after(step + 1):
            ahead = [retriever.retrieve_ahead(batch, "train") for batch in following]
        yield batches, current
        batches, step = following, step + 1
