"""memory_index/placement.py: every entry lies in one chunk, and every chunk in one shard."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index import placement
from memory_index.placement import Placement


@settings(deadline=None)
@given(entries=st.integers(0, 400), shards=st.integers(1, 6))
def test_chunks_and_shards_hold_every_entry_once(entries: int, shards: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "SMALLEST_CHUNK", 5)
        patch.setattr(placement, "LARGEST_CHUNK", 30)
        patch.setattr(placement, "CHUNKS_WANTED", 8)
        layout = Placement(num_entries=entries)
        held = []
        for shard in range(shards):
            chunks = list(layout.chunks_of(shard, shards))
            assert chunks == sorted(chunks)
            for chunk in chunks:
                part = range(entries)[layout.entries(chunk)]
                assert 0 < len(part) <= layout.chunk_rows
                assert {layout.shard_of(entry, shards) for entry in part} == {shard}
                held += part
    assert sorted(held) == list(range(entries))


@pytest.mark.parametrize(
    ("entries", "rows", "chunks"),
    [
        (0, 1024, 0),
        (1, 1024, 1),
        (1024, 1024, 1),
        (1025, 1024, 2),
        (64 * 1024 + 1, 1025, 64),
        (64 * 65536 + 1, 65536, 65),
    ],
)
def test_chunks_are_neither_tiny_nor_huge(entries: int, rows: int, chunks: int):
    layout = Placement(num_entries=entries)
    assert (layout.chunk_rows, layout.num_chunks) == (rows, chunks)


def test_every_shard_has_its_share_of_every_season():
    layout = Placement(num_entries=64 * 1024)
    for shard in range(4):
        quarters = [
            layout.entries(chunk).start // (16 * 1024) for chunk in layout.chunks_of(shard, 4)
        ]
        assert [quarters.count(season) for season in range(4)] == [4, 4, 4, 4]
