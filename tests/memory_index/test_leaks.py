"""No kind of index shows a query its own future: not itself, not a copy, not anyone of its time.

A query here has the key of an entry, which is the best match there can be, and lies as many steps
from it as is tried: within reach the entry must never be found, just outside it must be.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import exact_shard, faiss_flat, placement
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from memory_index.groups import RankGroup
from memory_index.sharded_index import ShardedIndex
from model.pattern_encoder import AnchoredEncoder
from tests.helpers.ranks import run_ranks
from tests.memory_index.shards import IVF_KINDS, KINDS, make_index, make_shard, parts_of, train

WIDTH, CHUNK = 8, 16
# The GPU shard too, with a search on the CPU in place of the device's.
KINDS_AND_DEVICES = [(kind, False) for kind in KINDS] + [(kind, True) for kind in IVF_KINDS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """A bank with a random key for each entry."""

    bank: MemoryBank
    keys: Tensor
    offsets: list[int] | None

    @classmethod
    def make(
        cls, shapes: list[tuple[int, int]], offsets: list[int] | None, seq_len: int, pred_len: int
    ) -> "Memory":
        series = [np.zeros(shape, dtype=np.float32) for shape in shapes]
        # The last rows are validation: queries come from there too, entries do not.
        rows = [(0, length - 20) for length, _ in shapes]
        bank = MemoryBank(series, rows, seq_len, pred_len, BankConfig(), offsets)
        keys = torch.randn(len(bank), WIDTH, generator=torch.Generator().manual_seed(0))
        return cls(bank=bank, keys=keys, offsets=offsets)

    def index(self, kind: str, on_gpu: bool, group: RankGroup) -> ShardedIndex:
        parts = parts_of(self.keys, self.bank.ids, group.rank, group.size)
        trained = train(kind, self.keys)
        shard = make_shard(kind, parts, WIDTH, trained, on_gpu=on_gpu)
        effort = 256 if kind == "hnsw" else 2
        return make_index(kind, shard, group, self.keys, self.bank.ids, effort=effort)

    def time(self, series: Tensor, starts: Tensor) -> Tensor:
        """Row on the clock that all series share; a million apart where there is none."""
        offsets = self.offsets or [10**6 * (number + 1) for number in range(9)]
        return torch.tensor(offsets)[series] + starts

    def check(
        self, kind: str, index: ShardedIndex, series: Tensor, starts: Tensor, past_only: bool
    ) -> None:
        """Ask for each entry from each place; refuse a leak, and an entry that is not shown."""
        bank = self.bank
        span = bank.seq_len + bank.pred_len
        rule = Exclusion(seq_len=bank.seq_len, pred_len=bank.pred_len, past_only=past_only)
        entry_times = self.time(bank.series(bank.ids), bank.starts(bank.ids))
        now = self.time(series, starts)
        # All entries that overlap, and those up to two steps beyond, in every variate and series.
        place, target = ((entry_times - now[:, None]).abs() < span + 2).nonzero().T
        hidden = bank.hidden(series[place], starts[place], rule)
        _, found = index.search(self.keys[target], hidden, 3)

        gap = entry_times - now[:, None]
        ends = gap + span  # first step after the entry, counted from the query's first
        leaks = (gap.abs() < span) | (past_only & (gap.abs() < 10**5) & (ends > bank.seq_len))
        assert torch.equal((found >= 0).sum(dim=1), (~leaks[place]).sum(dim=1).clamp(max=3))
        rows = torch.searchsorted(bank.ids, found)
        assert not (leaks[place[:, None], rows.clamp(max=len(bank) - 1)] & (found >= 0)).any()
        shown = (found == bank.ids[target][:, None]).any(dim=1)
        missed = int((~shown & ~leaks[place, target]).sum())
        # A graph may have no way to an entry, and a few product codes may seem nearer.
        assert missed <= (1 + len(target) // 50 if kind in ("hnsw", "ivf_pq") else 0)


def two_series() -> Memory:
    return Memory.make([(150, 2), (140, 1)], [0, 25], seq_len=8, pred_len=4)


def every_place(memory: Memory) -> tuple[Tensor, Tensor]:
    lengths = [150, 140]
    return (
        torch.arange(2).repeat_interleave(torch.tensor(lengths)),
        torch.cat([torch.arange(length) for length in lengths]),
    )


@pytest.mark.parametrize(("kind", "on_gpu"), KINDS_AND_DEVICES)
@pytest.mark.parametrize("past_only", [False, True])
def test_no_copy_is_shown_from_any_place_on_the_clock(
    kind: str, on_gpu: bool, past_only: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(placement, "SMALLEST_CHUNK", CHUNK)
    for name in ("SMALLEST_BLOCK", "LARGEST_BLOCK"):
        monkeypatch.setattr(faiss_flat, name, 24)
    monkeypatch.setattr(exact_shard, "ENTRY_TILE", 20)
    memory = two_series()
    memory.check(kind, memory.index(kind, on_gpu, RankGroup()), *every_place(memory), past_only)


def ask_on_ranks(rank: int, world_size: int) -> None:
    placement.SMALLEST_CHUNK = CHUNK
    memory, group = two_series(), RankGroup(dist.group.WORLD, range(world_size), rank)
    series, starts = every_place(memory)
    # Chunks of 16 entries lie on the ranks in turn: places whose range has an end at a border.
    bank, rule = memory.bank, Exclusion(seq_len=8, pred_len=4, past_only=False)
    ends = torch.searchsorted(bank.ids, bank.hidden(series, starts, rule))
    at_border = ((ends % CHUNK == 0) & (ends > 0) & (ends < len(bank))).any(dim=1)
    assert at_border.sum() > 20
    series, starts = (part[at_border][rank::world_size] for part in (series, starts))
    for kind, on_gpu in KINDS_AND_DEVICES:
        for past_only in (False, True):
            try:
                memory.check(kind, memory.index(kind, on_gpu, group), series, starts, past_only)
            except AssertionError as error:
                raise AssertionError(f"{kind}, on_gpu={on_gpu}, past_only={past_only}") from error


@pytest.mark.ranks
def test_no_copy_is_shown_whichever_rank_holds_it():
    run_ranks(ask_on_ranks, 3)


@pytest.mark.parametrize(("kind", "on_gpu"), KINDS_AND_DEVICES)
@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.tuples(st.integers(120, 160), st.integers(1, 2)), min_size=3, max_size=3),
    offsets=st.none() | st.lists(st.integers(0, 90), min_size=3, max_size=3),
    seq_len=st.integers(1, 10),
    pred_len=st.integers(1, 6),
    places=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 160)), min_size=1, max_size=6, unique=True
    ),
    past_only=st.booleans(),
)
def test_no_copy_is_shown_whatever_the_series_and_shifts(
    kind: str,
    on_gpu: bool,
    lengths: list[tuple[int, int]],
    offsets: list[int] | None,
    seq_len: int,
    pred_len: int,
    places: list[tuple[int, int]],
    past_only: bool,
):
    memory = Memory.make(lengths, offsets, seq_len, pred_len)
    memory.check(kind, memory.index(kind, on_gpu, RankGroup()), *torch.tensor(places).T, past_only)


@pytest.mark.parametrize(("kind", "on_gpu"), KINDS_AND_DEVICES)
@pytest.mark.parametrize("past_only", [False, True])
def test_a_series_that_repeats_itself_is_met_only_outside_the_query(
    kind: str, on_gpu: bool, past_only: bool
):
    # Every window returns after ten steps, future and all; less than twelve is an overlap.
    period, seq_len, pred_len = 10, 8, 4
    motif = np.random.default_rng(0).normal(size=(period, 2)).astype(np.float32)
    series = np.tile(motif, (40, 1))
    bank = MemoryBank([series], [(0, 400)], seq_len, pred_len, BankConfig())
    encoder = AnchoredEncoder(seq_len, WIDTH)
    keys = encoder(bank.windows(bank.ids)).key
    shard = make_shard(kind, parts_of(keys, bank.ids), WIDTH, train(kind, keys), on_gpu=on_gpu)
    index = make_index(kind, shard, RankGroup(), keys, bank.ids, effort=2)
    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    asked = bank.ids[200:]  # from step 100 on, so that there is a past
    own = bank.starts(asked)
    distances, found = index.search(
        bank_keys(keys, bank, asked), bank.hidden(bank.series(asked), own, rule), 3
    )
    gap = bank.starts(found) - own[:, None]
    assert (gap.abs() >= seq_len + pred_len).all()
    assert not past_only or (gap < 0).all()
    if kind not in ("hnsw", "ivf_pq", "ivf_sq8"):  # these may overlook one copy among so many
        assert (gap % period == 0).all()
        assert distances.max() < 1e-10


def bank_keys(keys: Tensor, bank: MemoryBank, ids: Tensor) -> Tensor:
    return keys[torch.searchsorted(bank.ids, ids)]
