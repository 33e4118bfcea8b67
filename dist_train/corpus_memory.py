"""The memory of several sources: a bank and an index for each, searched as one.

Shape legend (this file):
    S  sources
"""

import re
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.data.clock import shared_clock
from dist_train.data.config import DataError
from dist_train.data.windows import ForecastData
from dist_train.memory_build import LiveMemory, MemoryBuilder, choose_entries, temporary_root
from memory_index.bank import even_shares
from memory_index.bank_union import BankUnion
from memory_index.config import BankConfig, IndexKind
from memory_index.index_union import IndexUnion
from model.config import GramConfig
from model.pattern_encoder import AnchoredEncoder, DualEncoder

JOINED = "+"
"""Between the versions of the banks that make up one memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveCorpusMemory:
    """The indexes of all sources, whose keys one encoder made."""

    parts: tuple[LiveMemory, ...]
    """One for each source that has entries."""

    index: IndexUnion

    @property
    def encoder(self) -> DualEncoder | AnchoredEncoder:
        """The encoder that made the keys."""
        return self.parts[0].encoder

    @property
    def fingerprint(self) -> str:
        """Name of its state."""
        return self.parts[0].fingerprint

    @property
    def version(self) -> str:
        """Names of the folders of all banks."""
        return JOINED.join(part.version for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class KeptIndex:
    """How a bank that is there already is searched, whatever this machine would choose."""

    kind: IndexKind
    nlist: int | None

    def of(self, config: BankConfig) -> BankConfig:
        """The same bank, searched so."""
        return replace(config, index=self.kind, nlist=self.nlist)


class CorpusMemoryBuilder:
    """As :class:`MemoryBuilder`, of several sources; each has a folder of its own below the root.

    Attributes:
        names: Of the sources that have entries.
        parts: Their builders.
    """

    def __init__(
        self,
        data: ForecastData,
        gram: GramConfig,
        config: BankConfig,
        root: Path | None,
        off: Collection[str] = (),
        indexes: Mapping[str, KeptIndex] | None = None,
    ) -> None:
        """Choose entries and indexes; collective.

        A limit of entries, and that of their memory, is shared out by numbers of entries. A source
        whose series overlap in time and share no clock has none, and its queries get nothing.

        Args:
            data: The series of all sources.
            gram: Which key, and which sources a query gets entries of.
            config: As :class:`MemoryBuilder`.
            root: As :class:`MemoryBuilder`.
            off: Names of sources whose queries get nothing.
            indexes: By name of the source, where they are known; None: they are chosen.

        Raises:
            DataError: No source has entries.
            ValueError: A GPU was asked for and there is none.
        """
        self.names, self._of_source = list[str](), dict[int, MemoryBuilder]()
        sources = [data.only(number) for number in range(len(data.sources))]
        clocks = [shared_clock(source.series_set) for source in sources]
        counts = [
            0 if clock is None else source.num_entries(config.bank_stride)
            for source, clock in zip(sources, clocks, strict=True)
        ]
        shares = even_shares(counts, config.limit)
        if not any(shares):
            raise DataError(
                "gram.use_gram=true: no source has a row that the memory may hold: raise "
                "memory_percent of one of data.sources, or set gram.use_gram=false."
            )
        self._forget: weakref.finalize[..., Any] | None = None
        chosen = Path(config.path) if config.path else root
        if chosen is None:
            chosen, self._forget = temporary_root(self)
        self.root = chosen
        banks = []
        for number, (source, clock, share) in enumerate(zip(sources, clocks, shares, strict=True)):
            if not share:
                source = replace(source, memory_rows=((0, 0),) * len(source.scalers))
            own = _shared_out(config, share, sum(shares))
            bank = choose_entries(source, own, None if clock is None else clock.offsets)
            if share:
                name = source.sources[0].name
                place = self.root / folder_name(name)
                own = replace(own, path=str(place) if config.path else None)
                own = own if indexes is None else indexes[name].of(own)
                self._of_source[number] = MemoryBuilder(source, gram, own, place, bank=bank)
                self.names.append(name)
            banks.append(bank)
        timelines = [None if clock is None else clock.timeline for clock in clocks]
        names = [source.name for source in data.sources]
        self.bank = BankUnion(banks, timelines, who_sees_whom(gram.retrieval_scope, names, off))
        self.parts = tuple(self._of_source.values())
        self.device, self.width = self.parts[0].device, self.parts[0].width
        self._opening = self.parts[0]

    @property
    def reason(self) -> str:
        """How the banks are searched and why, for the log."""
        told = zip(self.names, self.parts, strict=True)
        return "; ".join(f"{name}: {part.choice.reason}" for name, part in told)

    def open(self, state: Mapping[str, Tensor]) -> LiveCorpusMemory:
        """Load or build the banks of an encoder, see :meth:`MemoryBuilder.open`; collective."""
        live = []
        for part in self.parts:
            self._opening = part
            live.append(part.open(state))
        indexes = {number: one.index for number, one in zip(self._of_source, live, strict=True)}
        return LiveCorpusMemory(parts=tuple(live), index=IndexUnion(indexes, self.bank.first_ids))

    def prune(self, keep: set[str]) -> None:
        """As :meth:`MemoryBuilder.prune`."""
        for part in self.parts:
            part.prune({version for joined in keep for version in joined.split(JOINED)})

    def give_up_if_disk_is_full(self, error: Exception) -> bool:
        """As :meth:`MemoryBuilder.give_up_if_disk_is_full`, of the source that was being opened."""
        return self._opening.give_up_if_disk_is_full(error)

    def close(self) -> None:
        """As :meth:`MemoryBuilder.close`."""
        if self._forget is not None:
            self._forget()


def open_builder(
    data: ForecastData,
    gram: GramConfig,
    config: BankConfig,
    root: Path | None,
    off: Collection[str] = (),
    indexes: Mapping[str, KeptIndex] | None = None,
) -> MemoryBuilder | CorpusMemoryBuilder:
    """Make the builder of a run's memory, of one source or of several; collective.

    Args:
        data: The series.
        gram: Which key, and which sources a query gets entries of.
        config: Which windows, which index, and where.
        root: Folder of the banks where ``bank.path`` names none; None: one that goes away.
        off: Names of sources whose queries get nothing; none where there is one source.
        indexes: By name of the source, where they are known; None: they are chosen.

    Raises:
        DataError: As :class:`CorpusMemoryBuilder`.
    """
    if len(data.sources) > 1:
        return CorpusMemoryBuilder(data, gram, config, root, off, indexes)
    assert not off
    if indexes is not None:
        config = indexes[data.sources[0].name].of(config)
    return MemoryBuilder(data, gram, config, root)


def who_sees_whom(scope: str, names: Sequence[str], off: Collection[str]) -> Tensor:
    """Say whether queries of a source (row) get entries of another one (column). (S, S), bool.

    Args:
        scope: ``gram.retrieval_scope``.
        names: Of the sources.
        off: Of those whose queries get nothing.
    """
    assert set(off) <= set(names)
    own = torch.eye(len(names), dtype=torch.bool)
    sees = {"source": own, "across": ~own, "both": torch.ones_like(own)}[scope]
    return sees & torch.tensor([name not in off for name in names])[:, None]


def folder_name(source: str) -> str:
    """Name of the folder of a source's banks; two that share it do not mix, their versions differ.

    Args:
        source: Its name.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".")[:100] or "source"


def _shared_out(config: BankConfig, share: int, total: int) -> BankConfig:
    """The part of one source of what all of them may take."""
    limit = None if config.limit is None else max(1, share)
    part = share / total if share else 1.0
    return replace(
        config, num_samples=limit, max_memory_size=None, memory_gib=config.memory_gib * part
    )
