"""Search an index whose parts lie on several ranks, as if it were one.

Every rank asks for its own queries. They are gathered, each rank searches its shard for all of
them, and the answers go back and are merged: two exchanges in all, where one shard has enough for
every query. A rank that fails says so in the exchange that is due, so that all raise the same
error.

Shape legend (this file):
    Q  queries of this rank     Z2  width of a key     R  ranks of the group
    K  neighbours wanted        P   lists visited      C  candidates of all ranks
"""

from collections.abc import Callable

import torch
from torch import Tensor

from memory_index.groups import RankGroup
from memory_index.merge import merge_neighbours
from memory_index.shard import Route, Shard

Encode = Callable[[Tensor], Tensor]
"""Ids (m,) -> their exact keys (m, Z2), float32, on the CPU."""

# How much harder the search tries where it found fewer neighbours than there are.
MORE_EFFORT = 8


class SearchError(RuntimeError):
    """A search has failed on some rank; every rank of the group raises the same message."""


class ShardedIndex:
    """Collective search over the shards of a group of ranks."""

    def __init__(
        self,
        shard: Shard,
        group: RankGroup,
        entry_ids: Tensor,
        *,
        effort: int = 0,
        encode: Encode | None = None,
        refine: int = 1,
    ) -> None:
        """Hold this rank's shard.

        Args:
            shard: The entries of this rank.
            group: Ranks whose shards make up the bank, each entry once.
            entry_ids: Ids of all entries of the bank, ascending. Shape (M,), int64.
            effort: Lists that a query visits, or candidates of the graph.
            encode: Where the shard keeps codes only: makes exact keys, to rank candidates by.
            refine: Candidates per neighbour that are ranked so.
        """
        self.shard = shard
        self.group = group
        self.effort = effort
        self.refine = refine if encode is not None else 1
        self._entry_ids = entry_ids
        self._encode = encode
        self._room = 0  # bytes of queries that the first exchange has room for, as on all ranks

    def search(self, queries: Tensor, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the K nearest entries that this rank's queries may see; collective.

        K visible neighbours are found wherever there are as many: a query with fewer is searched
        again with more effort.

        Args:
            queries: Keys. Shape (Q, Z2), float32, CPU; Q may differ between ranks and be 0.
            hidden: Range of ids that each must not see, first <= id < end. (Q, 2), int64, CPU.
            k: Neighbours wanted; the same on every rank.

        Returns:
            ``(distances, ids)``: squared Euclidean distances, nearest first, equal ones by id;
            inf and -1 where fewer are visible. Shape (Q, K), float32 and int64, CPU.

        Raises:
            SearchError: The search failed on some rank; one rank alone raises what it met.
        """
        count, effort = k * self.refine, self.effort
        distances, ids, enough = self._search_once(queries, hidden, count, effort)
        visible = len(self._entry_ids) - self._count_hidden(hidden)
        wanted = visible.clamp(max=k)
        while not enough and effort < self.shard.max_effort:
            short = (ids >= 0).sum(dim=1) < wanted
            if not self.group.any(bool(short.any())):
                break
            effort = min(max(1, effort) * MORE_EFFORT, self.shard.max_effort)
            distances[short], ids[short], enough = self._search_once(
                queries[short], hidden[short], count, effort
            )
        if self._encode is None:
            return distances, ids
        return merge_neighbours(self._measure_again(queries, ids), ids, k)

    def _count_hidden(self, hidden: Tensor) -> Tensor:
        first, end = torch.searchsorted(self._entry_ids, hidden.T.contiguous())
        hidden_Q: Tensor = (end - first).clamp_min(0)
        return hidden_Q

    def _measure_again(self, queries: Tensor, ids: Tensor) -> Tensor:
        """As :meth:`_exact_distances`, on all ranks or on none."""
        if self.group.size == 1:
            return self._exact_distances(queries, ids)
        distances, failure = torch.empty(0), None
        try:
            distances = self._exact_distances(queries, ids)
        except Exception as error:
            failure = error
        if self.group.any(failure is not None):
            self._raise(failure)
        return distances

    def _exact_distances(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Measure the candidates again, by keys made from their windows. (Q, C)."""
        assert self._encode is not None
        unique, place = torch.unique(ids.clamp_min(0), return_inverse=True)
        keys = self._encode(unique).double() if len(unique) else queries.double()
        distances = (keys[place] - queries.double()[:, None]).square().sum(dim=-1).float()
        return distances.masked_fill(ids < 0, torch.inf)

    def _search_once(
        self, queries: Tensor, hidden: Tensor, k: int, effort: int
    ) -> tuple[Tensor, Tensor, bool]:
        """Search once. Returns (distances, ids), and whether all ranks know that none lacks any."""
        if self.group.size == 1:
            route = self.shard.route(queries, effort)
            found = self.shard.search(queries, hidden, k, effort, route)
            return *merge_neighbours(*found, k), False
        counts, packed = self._gather_queries(queries, hidden, k, effort)
        answer, failure = None, None
        try:
            asked, ranges, route = _unpack(packed, queries.shape[1])
            answer = self.shard.search(asked, ranges, k, effort, route)
        except Exception as error:
            failure = error
        return self._send_back(answer, failure, counts, k)

    def _gather_queries(
        self, queries: Tensor, hidden: Tensor, k: int, effort: int
    ) -> tuple[list[int], Tensor]:
        """Collect everyone's queries. Returns counts by rank, and the packed queries in order.

        One exchange, unless they are more than ever before: then the first one, which every rank
        enters with the room of the last time, brings the sizes alone.
        """
        failure, packed = None, torch.empty(0, 0, dtype=torch.uint8)
        try:
            packed = _pack(queries, hidden, self.shard.route(queries, effort))
        except Exception as error:
            failure = error
        header = torch.tensor([*packed.shape, k, failure is not None])
        flat = packed.flatten()
        gathered = self.group.all_gather(_with_room(header, flat, self._room))
        headers = _typed(gathered[:, : header.nbytes])
        if headers[:, 3].any():
            self._raise(failure)
        if not (headers[:, 1:3] == headers[0, 1:3]).all():
            raise SearchError(
                f"the ranks ask for different things: (key bytes, K) is {headers[:, 1:3].tolist()}"
            )
        counts, width = headers[:, 0].tolist(), packed.shape[1]
        if max(counts) * width > self._room:
            self._room = max(counts) * width
            gathered = self.group.all_gather(_with_room(header, flat, self._room))
        rows = [
            part[header.nbytes : header.nbytes + count * width].view(count, width)
            for part, count in zip(gathered, counts, strict=True)
        ]
        return counts, torch.cat(rows)

    def _send_back(
        self,
        answer: tuple[Tensor, Tensor] | None,
        failure: Exception | None,
        counts: list[int],
        k: int,
    ) -> tuple[Tensor, Tensor, bool]:
        """Send each rank its answers and merge those that came, as :meth:`_search_once`."""
        size = max(counts)
        # One more row than answers: its first byte says whether this rank has failed, its second
        # whether this shard alone had K for every query of all ranks.
        outgoing = torch.zeros(self.group.size, size + 1, k * 12, dtype=torch.uint8)
        outgoing[:, -1, 0] = failure is not None
        if answer is not None:
            outgoing[:, -1, 1] = bool((answer[1] >= 0).all())
            rows = torch.cat([_bytes(answer[0]), _bytes(answer[1])], dim=1)
            for place, part in enumerate(torch.split(rows, counts)):
                outgoing[place, : len(part)] = part
        incoming = self.group.exchange(outgoing.flatten(1)).view(self.group.size, size + 1, -1)
        if incoming[:, -1, 0].any():
            self._raise(failure)
        mine = incoming[:, : counts[self.group.rank]]
        distances, ids = _typed(mine[..., : 4 * k], torch.float32), _typed(mine[..., 4 * k :])
        merged = merge_neighbours(
            distances.transpose(0, 1).flatten(1), ids.transpose(0, 1).flatten(1), k
        )
        return *merged, bool(incoming[:, -1, 1].any())

    def _raise(self, failure: Exception | None) -> None:
        """Raise one message on all ranks: that of the first rank that failed."""
        said = None if failure is None else f"{type(failure).__name__}: {failure}"
        messages = self.group.gather_objects(said)
        place = next(number for number, message in enumerate(messages) if message is not None)
        raise SearchError(
            f"the search in the memory failed on rank {self.group.ranks[place]}: {messages[place]}"
        ) from failure


def _bytes(rows: Tensor) -> Tensor:
    """(Q, n) of any type -> (Q, n * bytes) uint8."""
    if rows.numel() == 0:
        return rows.new_empty((len(rows), rows.shape[1] * rows.itemsize), dtype=torch.uint8)
    return rows.contiguous().view(torch.uint8)


def _with_room(header: Tensor, content: Tensor, room: int) -> Tensor:
    """Bytes of a header and of what follows it, where that fits. (header's bytes + room,) uint8."""
    buffer = torch.zeros(header.nbytes + room, dtype=torch.uint8)
    buffer[: header.nbytes] = header.view(torch.uint8)
    if len(content) <= room:
        buffer[header.nbytes : header.nbytes + len(content)] = content
    return buffer


def _pack(queries: Tensor, hidden: Tensor, route: Route) -> Tensor:
    """One row of bytes per query: range, key, then lists and distances."""
    lists, distances = route
    parts = [hidden, queries.float(), lists, distances]
    return torch.cat([_bytes(part) for part in parts], dim=1)


def _unpack(packed: Tensor, width: int) -> tuple[Tensor, Tensor, Route]:
    """Key (Q, Z2), range (Q, 2) and route of each query."""
    key_end = 16 + 4 * width
    lists_end = key_end + (packed.shape[1] - key_end) // 2

    lists = _typed(packed[:, key_end:lists_end], torch.int32)
    route = lists, _typed(packed[:, lists_end:], torch.float32)
    return _typed(packed[:, 16:key_end], torch.float32), _typed(packed[:, :16]), route


def _typed(packed: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Read bytes as numbers. (..., n * bytes) uint8 -> (..., n)."""
    if packed.numel() == 0:
        shape = (*packed.shape[:-1], packed.shape[-1] // dtype.itemsize)
        return packed.new_empty(shape, dtype=dtype)
    # A copy: the bytes of a view may begin where no number of that type can.
    return packed.clone(memory_format=torch.contiguous_format).view(dtype)
