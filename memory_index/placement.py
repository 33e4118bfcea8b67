"""Where the entries of a bank lie: entry -> chunk -> shard.

A chunk is a run of entries in order of time, encoded, saved and verified together. How long it is
depends on the bank alone, so a bank built by any number of ranks can be shared out over any other
number. Chunks are dealt out in turn, which gives every shard its share of every season.
"""

from dataclasses import dataclass

SMALLEST_CHUNK, LARGEST_CHUNK = 1024, 65536
CHUNKS_WANTED = 64


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The chunks of a bank."""

    num_entries: int
    """M."""

    @property
    def chunk_rows(self) -> int:
        """Entries of a chunk; the last one may have fewer."""
        return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, -(-self.num_entries // CHUNKS_WANTED)))

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole bank."""
        return -(-self.num_entries // self.chunk_rows)

    def entries(self, chunk: int) -> slice:
        """Entries of one chunk, as a slice of the bank's ids."""
        first = chunk * self.chunk_rows
        return slice(first, min(first + self.chunk_rows, self.num_entries))

    def chunks_of(self, shard: int, num_shards: int) -> range:
        """Chunks of one shard, ascending."""
        return range(shard, self.num_chunks, num_shards)

    def shard_of(self, entry: int, num_shards: int) -> int:
        """Shard that holds an entry."""
        return entry // self.chunk_rows % num_shards
