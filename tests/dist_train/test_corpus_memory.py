"""dist_train/corpus_memory.py: several sources are searched as one memory without leaks.

What is found is compared with a slow loop over all entries of all sources, by their time stamps.
"""

from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_train.corpus_memory import (
    CorpusMemoryBuilder,
    LiveCorpusMemory,
    folder_name,
    who_sees_whom,
)
from dist_train.data.collate import Collator
from dist_train.data.config import DataError
from dist_train.data.windows import ForecastData
from dist_train.leak_alarm import LeakError, check_for_leaks
from dist_train.memory_build import MemoryBuilder, bank_root
from dist_train.retrieval import Neighbours, Retriever
from memory_index import placement
from memory_index.bank_union import BankUnion
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from memory_index.store import bank_folders, versions
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import data_of_sources, source_of
from tests.helpers.ranks import run_ranks

L, H = 20, 4
SPAN = L + H
SPLITS = ("train", "val", "test")
SCOPES = ("source", "across", "both")


def noise(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=rows).cumsum()


def stamps(start: str, rows: int, freq: str) -> np.ndarray:
    return pd.date_range(start, periods=rows, freq=freq).as_unit("ns").to_numpy()


def odd_stamps() -> np.ndarray:
    """Half hours with a duplicate in the middle and a gap after it, as weather has them."""
    dates = stamps("2020-01-02", 400, "30min").copy()
    dates[151:] -= np.timedelta64(30, "m")
    dates[190:] += np.timedelta64(7, "h")
    return dates


@cache
def corpus() -> ForecastData:
    """Hours, quarters of hours within them, and irregular half hours that two series share."""
    hours = [
        (stamps("2020-01-01", 300, "h"), noise(300, 0)),
        (stamps("2020-01-02 06:00", 250, "h"), noise(250, 1)),
    ]
    quarters = [(stamps("2020-01-03 00:15", 500, "15min"), noise(500, 2))]
    odd = [(odd_stamps(), noise(400, seed)) for seed in (3, 4)]
    parts = {"hours": hours, "quarters": quarters, "odd": odd}
    return data_of_sources([source_of(*one) for one in parts.items()], L, H)


def gram(key: str = "anchored", **options: object) -> GramConfig:
    return GramConfig(use_gram=True, retrieval_key=key, d_repr=8, **options)  # type: ignore[arg-type]


def fresh(key: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build_encoder(gram(key), L).state_dict())


def make(
    data: ForecastData | None = None, key: str = "anchored", bank: BankConfig | None = None,
    off: tuple[str, ...] = (), root: Path | None = None, **options: object,
) -> Retriever:  # fmt: skip
    settings_ = gram(key, **options)
    retriever = Retriever(data or corpus(), settings_, bank or BankConfig(), root, off=off)
    retriever.refresh(fresh(key))
    return retriever


def search(retriever: Retriever, split: str, ids: list[int]) -> Neighbours:
    batch = Collator(retriever.data.windows[split], None)(ids)
    return retriever.search_batch(batch, split)


def some(data: ForecastData, split: str, count: int) -> list[int]:
    """Windows of every source, the first and last ones among them."""
    found = []
    for first, end in zip(data.first_series[:-1], data.first_series[1:], strict=True):
        found += data.windows[split].even_sample(count, slice(int(first), int(end))).tolist()
    return found


def lasting(data: ForecastData, series: int, start: int) -> tuple[pd.Timestamp, pd.Timestamp]:
    """When a window begins and ends, said once more in plain words."""
    dates = pd.DatetimeIndex(data.series_set.series[series].dates)
    after = start + SPAN
    end = dates[after] if after < len(dates) else dates[-1] + (dates[-1] - dates[-2])
    step = dates.to_series().diff().loc[lambda gap: gap > pd.Timedelta(0)].min()
    return dates[start], max(end, dates[after - 1] + step)


@cache
def entries(data: ForecastData) -> list[tuple[int, int, pd.Timestamp, pd.Timestamp]]:
    """Every window of the memory's rows: series, start, begin and end."""
    return [
        (number, start, *lasting(data, number, start))
        for number, (first, end) in enumerate(data.memory_rows)
        for start in range(first, end - SPAN + 1)
    ]


def by_loop(
    retriever: Retriever, split: str, window_id: int, scope: str
) -> list[tuple[float, int, int]]:
    """All that a window may see: distance, series and start, nearest first."""
    data, bank = retriever.data, retriever.bank
    assert isinstance(bank, BankUnion)
    own, start = data.windows[split].locate(window_id)
    begin, end = lasting(data, own, start)
    source = data.source_of(np.array(own))
    seen = []
    for series, first, its_begin, its_end in entries(data):
        same = data.source_of(np.array(series)) == source
        in_scope = scope == "both" or same == (scope == "source")
        hidden = its_end > begin and (split != "train" or its_begin < end)
        if in_scope and not hidden:
            seen.append((series, first))
    if not seen:
        return []
    values = data.windows["train"].values
    windows = [values[own][start : start + L, 0]]
    windows += [values[series][first : first + L, 0] for series, first in seen]
    keys = retriever.encoder(torch.from_numpy(np.stack(windows))).key.double()
    distances = (keys[1:] - keys[0]).square().sum(dim=1).tolist()
    return sorted((distance, *place) for distance, place in zip(distances, seen, strict=True))


@pytest.mark.parametrize("key", ["anchored", "dual"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("split", SPLITS)
def test_what_is_found_equals_a_slow_loop_over_all_entries(split: str, scope: str, key: str):
    retriever = make(key=key, retrieval_scope=scope, top_k=4)
    ids = some(retriever.data, split, 5)
    found = search(retriever, split, ids)
    series_RK, starts_RK, _ = retriever.bank.places(found.ids)
    some_found = False
    for row, window_id in enumerate(ids):
        expected = by_loop(retriever, split, window_id, scope)[:4]
        valid = found.ids[row] >= 0
        assert int(valid.sum()) == len(expected)
        some_found |= bool(expected)
        places = list(zip(series_RK[row].tolist(), starts_RK[row].tolist(), strict=True))
        assert set(places[: len(expected)]) == {(series, start) for _, series, start in expected}
        distances = [distance for distance, *_ in expected]
        torch.testing.assert_close(
            found.distances[row][valid], torch.tensor(distances), rtol=1e-4, atol=1e-4
        )
    assert some_found
    retriever.close()


@settings(deadline=None, max_examples=60)
@given(split=st.sampled_from(SPLITS), choice=st.floats(0, 1), source=st.integers(0, 2))
def test_all_that_a_window_may_see_is_what_shares_no_time_with_it(
    split: str, choice: float, source: int
):
    retriever = everything()
    data = retriever.data
    part = slice(*data.first_series[source : source + 2].tolist())
    ids = data.windows[split].even_sample(10**9, part)
    window_id = int(ids[int(choice * (len(ids) - 1))])
    found = search(retriever, split, [window_id]).ids[0]
    series, starts, _ = retriever.bank.places(found[found >= 0])
    got = set(zip(series.tolist(), starts.tolist(), strict=True))
    expected = by_loop(retriever, split, window_id, "both")
    assert got == {(one, start) for _, one, start in expected}


@cache
def everything() -> Retriever:
    """A memory that returns all that may be seen."""
    return make(top_k=len(make().bank))


@pytest.mark.parametrize("past_only", [False, True])
def test_a_copy_in_another_source_is_hidden_up_to_the_last_shared_step(past_only: bool):
    # A query of hours 100 to 123, and copies of it in quarters, each in a series of its own.
    places = (4 * 100 - SPAN, 4 * 100 - SPAN + 1, 4 * 124 - 1, 4 * 124)
    quarters = [(stamps("2020-01-01", 1200, "15min"), noise(1200, 1 + n)) for n in range(4)]
    hours = [(stamps("2020-01-01", 300, "h"), noise(300, 0))]
    data = data_of_sources([source_of("hours", hours), source_of("quarters", quarters)], L, H)
    own, *others = data.windows["train"].values
    for values, place in zip(others, places, strict=True):
        values[place : place + SPAN] = own[100 : 100 + SPAN]
    context = torch.from_numpy(own[None, 100 : 100 + L])
    with closing(make(data, retrieval_scope="across")) as retriever:
        found = retriever.search(context, np.array([0]), np.array([100]), past_only=past_only)
    series, starts, _ = retriever.bank.places(found.ids[0])
    got = set(zip(series.tolist(), starts.tolist(), strict=True))
    expected = (True, False, False, not past_only)
    assert tuple((1 + n, place) in got for n, place in enumerate(places)) == expected


def test_an_exclusion_that_is_a_row_too_short_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    loose = Exclusion(seq_len=L - 1, pred_len=H, past_only=False)
    monkeypatch.setattr(Retriever, "exclusion", lambda self, *, past_only: loose)
    with pytest.raises(AssertionError):
        test_a_copy_in_another_source_is_hidden_up_to_the_last_shared_step(False)


def test_within_its_source_a_window_finds_what_it_finds_without_the_others(tmp_path: Path):
    whole = make(retrieval_scope="source", root=tmp_path / "all")
    bank = whole.bank
    assert isinstance(bank, BankUnion)
    for number, source in enumerate(corpus().sources):
        data = corpus().only(number)
        alone = make(data, root=tmp_path / "alone")
        for split in SPLITS:
            windows = data.windows[split]
            batch = Collator(windows, None)(windows.even_sample(7).tolist())
            series, starts = windows.locate_batch(batch.window_ids.numpy())
            past_only = split != "train"
            one = alone.search(batch.context, series, starts, past_only=past_only)
            series = series + corpus().first_series[number]
            other = whole.search(batch.context, series, starts, past_only=past_only)
            first = bank.first_ids[number]
            assert torch.equal(one.ids.where(one.ids < 0, one.ids + first), other.ids)
            assert torch.equal(one.distances, other.distances)
            assert torch.equal(one.weights, other.weights)
            for mine, theirs in zip(alone.fetch(one)[:2], whole.fetch(other)[:2], strict=True):
                assert torch.equal(mine, theirs)
        # So one bank on disk serves both.
        assert alone.live.version in versions(tmp_path / "all" / source.name)


def test_every_id_leads_to_its_values():
    retriever = make()
    found = search(retriever, "test", some(corpus(), "test", 6)).ids
    series, starts, columns = retriever.bank.places(found)
    values = corpus().windows["train"].values
    windows = retriever.bank.windows(found)
    for place in zip(*torch.nonzero(found >= 0, as_tuple=True), strict=True):
        number, start = int(series[place]), int(starts[place])
        assert int(columns[place]) == 0
        own = values[number][start : start + L, 0]
        np.testing.assert_array_equal(windows[place].numpy(), own)


@pytest.mark.parametrize("scope", SCOPES)
def test_random_neighbours_come_from_the_scope_and_share_no_time(scope: str):
    retriever = make(neighbours="random", retrieval_scope=scope, top_k=30)
    ids = some(corpus(), "train", 4)
    found = search(retriever, "train", ids)
    series_RK, starts_RK, _ = retriever.bank.places(found.ids)
    for row, window_id in enumerate(ids):
        allowed = {tuple(place) for _, *place in by_loop(retriever, "train", window_id, scope)}
        pairs = zip(series_RK[row].tolist(), starts_RK[row].tolist(), strict=True)
        got = {pair for pair in pairs if pair[0] >= 0}
        assert len(got) == min(30, len(allowed))
        assert got <= allowed


def test_windows_of_a_source_that_is_off_get_nothing_and_the_others_what_they_got():
    plain, off = make(), make(off=("quarters",))
    ids = some(corpus(), "val", 5)
    before, after = search(plain, "val", ids), search(off, "val", ids)
    sources = corpus().source_of(corpus().windows["val"].locate_batch(ids)[0])
    silent = torch.from_numpy(sources == 1)
    assert (after.ids[silent] == -1).all()
    assert not after.weights[silent].any()
    assert torch.equal(after.ids[~silent], before.ids[~silent])
    # It is off as the one who asks: others may well find its entries.
    assert isinstance(off.bank, BankUnion)
    assert (off.bank.sources(after.ids) == 1).any()
    retrieved = off.fetch(after)
    assert not retrieved.valid[silent].any()
    assert not retrieved.futures[silent].any()


def test_scope_says_who_sees_whom():
    names = ["a", "b", "c"]
    assert who_sees_whom("source", names, []).tolist() == torch.eye(3).bool().tolist()
    assert who_sees_whom("across", names, ["b"]).tolist() == [
        [False, True, True], [False, False, False], [True, True, False],
    ]  # fmt: skip
    assert who_sees_whom("both", names, ["a", "c"]).sum(dim=1).tolist() == [0, 3, 0]


def of_memory(percents: tuple[int, int, int]) -> ForecastData:
    return data_of_sources(
        [
            replace(source, percent=min(100, percent), memory_percent=percent)
            for source, percent in zip(corpus().sources, percents, strict=True)
        ],
        L,
        H,
    )


def test_a_source_that_is_not_remembered_still_retrieves_from_the_others():
    data = of_memory((100, 0, 100))
    retriever = make(data)
    assert isinstance(retriever.builder, CorpusMemoryBuilder)
    assert retriever.builder.names == ["hours", "odd"]
    found = search(retriever, "test", some(data, "test", 6))
    assert isinstance(retriever.bank, BankUnion)
    assert set(torch.unique(retriever.bank.sources(found.ids)).tolist()) == {0, 2}
    assert (found.ids >= 0).any(dim=1).all()
    assert len(retriever.bank) == sum(len(bank) for bank in retriever.bank.banks)


def test_a_memory_without_any_row_is_refused():
    with pytest.raises(DataError, match=r"no source has a row .*: raise memory_percent of one"):
        make(of_memory((0, 0, 0)))


def test_a_source_never_trained_on_may_be_remembered():
    data = of_memory((100, 0, 100))
    data = replace(data, memory_rows=corpus().memory_rows)
    assert not len(data.windows["train"].even_sample(9, slice(2, 3)))
    assert len(make(data).bank) == len(make().bank)


def test_limits_are_shared_out_by_numbers_of_entries():
    retriever = make(bank=BankConfig(num_samples=100, memory_gib=2.0))
    bank = retriever.bank
    assert isinstance(bank, BankUnion)
    counts = [one.num_candidates for one in bank.banks]
    assert len(bank) == 100
    for one, count in zip(bank.banks, counts, strict=True):
        assert len(one) == pytest.approx(100 * count / sum(counts), abs=1)
    assert sum(part.config.memory_gib for part in retriever.builder.parts) == pytest.approx(2.0)
    # One that gets no share has no bank at all.
    tiny = make(bank=BankConfig(max_memory_size=2))
    assert len(tiny.bank) == 2
    assert len(tiny.builder.parts) < 3


def test_each_source_has_a_folder_that_the_next_run_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = make(key="dual", root=tmp_path / "bank")
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == [
        "hours", "odd", "quarters",
    ]  # fmt: skip
    assert isinstance(first.live, LiveCorpusMemory)
    assert first.live.version.split("+") == [part.version for part in first.live.parts]
    folders = bank_folders(tmp_path / "bank")
    assert {folder.version for folder in folders} == set(first.live.version.split("+"))
    assert bank_root(tmp_path) == tmp_path / "bank"
    monkeypatch.setattr(MemoryBuilder, "_encode_with", lambda builder, encoder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(key="dual", root=tmp_path / "elsewhere")
    monkeypatch.undo()
    again = make(key="dual", root=tmp_path / "bank")
    assert again.live.version == first.live.version
    assert again.fingerprint == first.fingerprint


def test_older_states_are_deleted_and_named_ones_kept(tmp_path: Path):
    retriever = make(key="dual", root=tmp_path)
    version, state = retriever.live.version, retriever.snapshot()
    for _ in range(2):
        state = {name: value + 0.1 for name, value in state.items()}
        retriever.refresh(state)
    assert len(bank_folders(tmp_path)) == 9
    retriever.prune({version})
    left = {folder.version for folder in bank_folders(tmp_path)}
    assert left == {*version.split("+"), *retriever.live.version.split("+")}
    retriever.prune(set())
    assert len(bank_folders(tmp_path)) == 3


def test_a_folder_that_runs_share_is_never_pruned_and_a_temporary_one_goes(tmp_path: Path):
    shared = make(bank=BankConfig(path=str(tmp_path)))
    shared.prune(set())
    assert len(bank_folders(tmp_path)) == 3
    passing = make()
    root = passing.builder.root
    assert len(bank_folders(root)) == 3
    passing.close()
    assert not root.exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [("ETTh1", "ETTh1"), ("my data*", "my_data_"), ("..", "source"), (".a", "a")],
)
def test_a_folder_is_named_after_its_source(name: str, folder: str):
    assert folder_name(name) == folder


def test_the_log_says_how_each_source_is_searched():
    reason = make().builder.reason
    assert reason.startswith("hours: flat, a copy on every rank: ")
    assert "; quarters: flat" in reason


def test_the_leak_alarm_compares_times_over_sources(monkeypatch: pytest.MonkeyPatch):
    assert check_for_leaks(make()).overlaps == 0
    # The same noise in both: only who sees the same time can know what follows.
    white = np.random.default_rng(5).normal(size=600)
    twins = [source_of(name, [(stamps("2020", 600, "h"), white)]) for name in ("a", "b")]
    data = data_of_sources(twins, L, H)
    settings_ = {"retrieval_scope": "across", "top_k": 1, "temperature": 0.05}
    assert check_for_leaks(make(data, **settings_)).overlaps == 0
    nothing = Exclusion(seq_len=0, pred_len=0, past_only=False)
    monkeypatch.setattr(Retriever, "exclusion", lambda self, *, past_only: nothing)
    with pytest.raises(LeakError, match=r"\d+ retrieved entries overlap their query in time"):
        check_for_leaks(make(data, **settings_))


def test_a_source_without_a_clock_has_no_entries_and_gets_no_neighbours():
    between = stamps("2020-01-01 00:07", 250, "h")
    odd = source_of("odd", [(stamps("2020", 250, "h"), noise(250, 8)), (between, noise(250, 9))])
    data = data_of_sources([odd, *corpus().sources[:2]], L, H)
    retriever = make(data)
    assert retriever.builder.names == [one.name for one in data.sources[1:]]
    for split in SPLITS:
        windows = data.windows[split]
        mine = search(retriever, split, windows.even_sample(4, slice(0, 2)).tolist())
        assert bool((mine.ids == -1).all())
        others = windows.even_sample(4, slice(2, None)).tolist()
        found = search(retriever, split, others)
        series, _, _ = retriever.bank.places(found.ids)
        assert bool((series[found.ids >= 0] >= 2).all())
        for row, window_id in enumerate(others):
            seen = [one for one in by_loop(retriever, split, window_id, "both") if one[1] >= 2]
            assert int((found.ids[row] >= 0).sum()) == min(len(seen), retriever.gram.top_k)
    assert check_for_leaks(retriever).overlaps == 0


def test_irregular_series_one_after_the_other_see_no_later_ones(tmp_path: Path):
    parts = [
        (odd_stamps() + np.timedelta64(300, "D"), noise(400, 6)),
        (odd_stamps(), noise(400, 7)),
    ]
    late_first = source_of("odd", parts)
    data = data_of_sources([late_first, corpus().sources[0]], L, H)
    alone, beside = make(data.only(0), root=tmp_path / "odd"), make(data, root=tmp_path)
    assert alone.live.version in beside.live.version
    for split in SPLITS:
        ids = some(data, split, 4)
        found = search(replace_top_k(beside, 10**4), split, ids)
        series_RK, starts_RK, _ = beside.bank.places(found.ids)
        for row, window_id in enumerate(ids):
            expected = {tuple(place) for _, *place in by_loop(beside, split, window_id, "both")}
            pairs = zip(series_RK[row].tolist(), starts_RK[row].tolist(), strict=True)
            assert {pair for pair in pairs if pair[0] >= 0} == expected
        if split == "train":
            continue
        ids = list(range(len(alone.data.windows[split])))
        found = search(replace_top_k(alone, 10**4), split, ids)
        series_RK, starts_RK, _ = alone.bank.places(found.ids)
        seen = set()
        for row, (series, start) in enumerate(alone.data.windows[split].locate(n) for n in ids):
            begins = parts[series][0][start + L]
            for other, entry in zip(series_RK[row].tolist(), starts_RK[row].tolist(), strict=True):
                if other >= 0:
                    assert parts[other][0][entry + L + H - 1] < begins
                    seen.add((series, other))
        assert seen == {(0, 0), (0, 1), (1, 1)}  # the first one in the file is the later one


def replace_top_k(retriever: Retriever, top_k: int) -> Retriever:
    retriever.gram = replace(retriever.gram, top_k=top_k)
    return retriever


def search_and_save(rank: int, world_size: int, out: Path) -> None:
    placement.SMALLEST_CHUNK = 64
    for index in ("flat", "ivf_flat"):
        for scope in SCOPES:
            bank = BankConfig(index=index, shard_group="world")  # type: ignore[arg-type]
            with closing(make(key="dual", bank=bank, retrieval_scope=scope)) as retriever:
                for split in ("train", "val"):
                    # The first rank asks nothing, the second for windows of each source.
                    ids = some(corpus(), split, 4) if rank == world_size - 1 else []
                    found = search(retriever, split, ids)
                    if ids:
                        name = f"{world_size}-{index}-{scope}-{split}.pt"
                        torch.save([found.ids, found.weights], out / name)


@pytest.mark.ranks
def test_two_ranks_find_what_one_finds(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(search_and_save, world_size, tmp_path, timeout_s=120)
    files = sorted(tmp_path.glob("1-*.pt"))
    assert len(files) == 12
    for path in files:
        one, two = torch.load(path), torch.load(path.with_name("2" + path.name[1:]))
        assert torch.equal(one[0], two[0]), path.name
        torch.testing.assert_close(one[1], two[1], atol=1e-6, rtol=1e-5)
