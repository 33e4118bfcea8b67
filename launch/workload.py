"""What one rank does in an optimizer step: operations, bytes sent, searches. Free of torch."""

from dataclasses import dataclass

from dist_train.config import RunConfig, check_batch_size
from dist_train.deepspeed_json import BUCKET
from dist_train.flops import (
    MicroBatch,
    bank_entry_flops,
    expected_batch,
    micro_batch_flops,
    total_flops,
)
from dist_train.parameter_counts import count_parameters, linear_layers
from dist_train.shapes import BackboneShape
from launch.bank_plan import VISITED_SHARE, key_width, plan_bank
from launch.hardware import NODE_RANKS
from launch.memory_plan import FLOAT32, frozen_bytes
from memory_index.index_choice import ShardGroup, bytes_per_entry

KEPT = 500_000_000
"""Numbers at the end of the forward that ZeRO-3 keeps for the backward: those that are used again
within DeepSpeed's stage3_max_reuse_distance of 1e9."""

# AdamW in float32 reads parameter, gradient and both moments, and writes all but the gradient.
OPTIMIZER_BYTES = 7 * FLOAT32


@dataclass(frozen=True, kw_only=True)
class SearchWork:
    """What the memory does for one micro-batch of one rank."""

    queries: int

    query_bytes: int
    """Of one query on its way to another rank."""

    answer_bytes: int
    """Of one query's answer from one shard."""

    value_bytes: int
    """Of what is read of its neighbours, in this rank's own memory."""

    search_flops: float
    """To compare one query with all entries of all shards; 0 where lists are read."""

    visited_bytes: float
    """Of the lists that one query reads in all shards; 0 where all entries are compared."""

    entries: int
    """Of the bank."""

    sharing: ShardGroup
    """Ranks that hold one copy of the index together."""

    flops: float = 0.0
    """To encode the queries, and candidates that are measured again."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one rank does in an optimizer step."""

    windows: int
    """Of a step, over all ranks."""

    micro_batches: int
    """Of one rank in a step."""

    flops: float
    """Forward and backward of a micro-batch of one rank."""

    zero_stage: int

    trained_weights: int
    """Numbers that are trained, LoRA's included."""

    gradient_bytes: int
    """Of all trained parameters, in the type they are sent in."""

    parameter_bytes: int
    """Of all trained parameters, in the type they compute in."""

    optimizer_bytes: float
    """Memory traffic of the update on one rank."""

    gathered_bytes: float = 0.0
    """What ZeRO-3 gathers for a micro-batch, frozen parameters too."""

    gathers: int = 1
    """Collectives in which it does."""

    buckets: int = 1
    """All-reduces that the gradients are cut into."""

    search: SearchWork | None = None


def workload_of(
    config: RunConfig,
    shape: BackboneShape,
    ranks: int,
    *,
    variates: int,
    bank_entries: int = 0,
    ranks_per_node: int = NODE_RANKS,
    item_bytes: int = 2,
    on_gpu: bool = True,
    batch: MicroBatch | None = None,
) -> Workload:
    """What one rank of a run does in a step.

    Args:
        config: The run.
        shape: Its language model.
        ranks: Of the job.
        variates: Of a window.
        bank_entries: Of the memory; not read without one.
        ranks_per_node: Who shares an index depends on it.
        item_bytes: Of a number in the compute type.
        on_gpu: Whether the index is searched on GPUs; it decides which kind is chosen.
        batch: What a forward pass reads; default: what :func:`expected_batch` expects.

    Raises:
        ConfigError: ``train.batch_size`` does not divide over the ranks.
        ValueError: The index does not fit ``bank.memory_gib``.
    """
    micro = check_batch_size(config.train, ranks)
    batch = batch or expected_batch(config, windows=micro, variates=variates)
    counts = count_parameters(config, shape)
    trained, stage = counts.trained_total, config.deepspeed.zero_stage
    updated = trained if stage == 0 else -(-trained // ranks)
    frozen = frozen_bytes(config, counts, item_bytes)
    return Workload(
        windows=config.train.batch_size,
        micro_batches=config.train.batch_size // (micro * ranks),
        flops=total_flops(micro_batch_flops(config, shape, batch)),
        zero_stage=stage,
        trained_weights=trained,
        gradient_bytes=trained * item_bytes,
        parameter_bytes=trained * item_bytes,
        optimizer_bytes=updated * OPTIMIZER_BYTES,
        gathered_bytes=_gathered_bytes(trained * item_bytes + frozen, item_bytes),
        gathers=shape.num_layers * len(linear_layers(shape)),
        buckets=-(-trained // BUCKET),
        search=_search_work(config, batch.rows, ranks, bank_entries, ranks_per_node, on_gpu),
    )


def _gathered_bytes(whole: float, item_bytes: int) -> float:
    """Forward gathers all; backward what was let go of in between, which is what comes back late.

    The last numbers of the forward are the first of the backward, so a block that is computed
    again is still there.
    """
    return whole + max(0.0, whole - KEPT * item_bytes)


def _search_work(
    config: RunConfig, rows: int, ranks: int, entries: int, ranks_per_node: int, on_gpu: bool
) -> SearchWork | None:
    if not config.gram.use_gram or entries == 0:
        return None
    bank = plan_bank(
        config, entries, rows, ranks=ranks, ranks_per_node=ranks_per_node, on_gpu=on_gpu
    )
    choice, width = bank.choice, key_width(config)
    share = bank.lists_visited / choice.nlist if choice.nlist else VISITED_SHARE
    encoded = rows * (1 + (0 if choice.stores_keys else bank.candidates))
    return SearchWork(
        queries=rows,
        query_bytes=bank.query_bytes,
        answer_bytes=bank.answer_bytes,
        value_bytes=bank.value_bytes,
        search_flops=2 * entries * width if choice.is_exact else 0,
        visited_bytes=0
        if choice.is_exact
        else entries * share * bytes_per_entry(choice.kind, width),
        entries=entries,
        sharing=choice.group,
        flops=encoded * bank_entry_flops(config),
    )
