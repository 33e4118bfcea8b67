"""Keys of real windows, of which the approximate kinds have to find the nearest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.exact_shard import ExactShard
from memory_index.exclusion import Exclusion
from memory_index.recall import SampleQueries, sample_ids
from model.pattern_encoder import AnchoredEncoder, DualEncoder

SEQ_LEN, PRED_LEN, ENTRIES, WIDTH = 336, 48, 24_000, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class RealWindows:
    """Half-hourly demand and temperature of Victoria, as the memory of a run sees them."""

    keys: Tensor
    """Shape (M, Z2), float32."""

    ids: Tensor
    """Shape (M,), int64, ascending."""

    sample: SampleQueries
    """What recall is tuned on."""

    queries: Tensor
    """Other windows: half of the training split, half of the validation split. (Q, Z2)."""

    hidden: Tensor
    """What these must not see. Shape (Q, 2), int64."""

    truth: Tensor
    """The 5 entries nearest to each that it may see. Shape (Q, 5), int64."""

    def encode(self, ids: Tensor) -> Tensor:
        """Exact keys of entries. (m,) -> (m, Z2)."""
        return self.keys[torch.searchsorted(self.ids, ids)]


def read_real_windows(key: str) -> RealWindows:
    """Encode windows of the embedded series with the ``anchored`` or an untrained dual encoder."""
    data = load_forecast_data(DataConfig(dataset="vic_elec", seq_len=SEQ_LEN, pred_len=PRED_LEN))
    train, val = data.windows["train"], data.windows["val"]
    config = BankConfig(num_samples=ENTRIES)
    bank = MemoryBank(train.values, train.ranges, SEQ_LEN, PRED_LEN, config)
    torch.manual_seed(0)
    encoder = AnchoredEncoder(SEQ_LEN, WIDTH) if key == "anchored" else DualEncoder(SEQ_LEN, 32)

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        parts = bank.windows(ids).split(1024)
        return torch.cat([encoder(part).key.float() for part in parts])

    def hidden(ids: Tensor, past_only: bool) -> Tensor:
        rule = Exclusion(seq_len=SEQ_LEN, pred_len=PRED_LEN, past_only=past_only)
        return bank.hidden(bank.series(ids), bank.starts(ids), rule)

    sample = sample_ids(bank.ids)
    # Time-major ids: two variates to a row. Odd steps, so that none is one of the sample.
    others = torch.arange(1, 2 * train.ranges[0][1] - 2 * (SEQ_LEN + PRED_LEN), 233)
    first, end = val.ranges[0]
    later = torch.arange(2 * first, 2 * (end - SEQ_LEN - PRED_LEN), 37)
    keys, queries = encode(bank.ids), encode(torch.cat([others, later]))
    ranges = torch.cat([hidden(others, False), hidden(later, True)])
    return RealWindows(
        keys=keys,
        ids=bank.ids,
        sample=SampleQueries(keys=encode(sample), hidden=hidden(sample, False)),
        queries=queries,
        hidden=ranges,
        # The reference, itself compared with a loop in test_exact_shard.py.
        truth=ExactShard(keys, bank.ids).search(queries, ranges, 5)[1],
    )
