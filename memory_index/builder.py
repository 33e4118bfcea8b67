"""Build a bank on all ranks: train what the shards share, encode each rank's chunks, publish.

A build that was killed goes on where it was: every chunk is a file of its own, whole or not there.

Shape legend (this file):
    M  entries     Z2  width of a key     m  entries of a chunk
    S  sample queries
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory_index.atomic_file import sha256_of
from memory_index.exact_shard import check_finite
from memory_index.faiss_ivf import encode_keys
from memory_index.faiss_training import train_codes, trained_index
from memory_index.groups import RankGroup
from memory_index.index_choice import POINTS_PER_LIST, IndexChoice
from memory_index.manifest import Manifest, ManifestError
from memory_index.placement import Placement
from memory_index.recall import SampleQueries, nearest_in_chunk
from memory_index.sharded_index import Encode
from memory_index.shared_disk import appears, make_folder
from memory_index.store import LOCK, TRAINED, BankFolder, chunk_name

# A product quantiser learns 256 codewords for each byte.
FEWEST_TRAINING_POINTS = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class BankPlan:
    """What is to be built."""

    choice: IndexChoice
    entry_ids: Tensor
    """Ids of the entries, ascending. Shape (M,), int64."""

    width: int
    """Z2."""

    identity: dict[str, Any]
    """All that the content depends on."""

    fingerprint: str
    """Of the encoder."""

    @property
    def placement(self) -> Placement:
        """How the entries are cut into chunks."""
        return Placement(num_entries=len(self.entry_ids))


def build_bank(
    folder: BankFolder,
    plan: BankPlan,
    encode: Encode,
    sample: SampleQueries,
    group: RankGroup,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Build a bank and publish it in its folder; collective.

    Args:
        folder: Where; a build begun before goes on.
        plan: What.
        encode: Makes keys of entries: ids (m,) -> (m, Z2), float32, CPU.
        sample: Queries whose true neighbours are kept with the bank.
        group: All ranks of the job.
        progress: Told how many entries this rank has done since the last call.

    Raises:
        ManifestError: The folder cannot be written, is in use, or is not one folder to all ranks.
        ValueError: A key is not finite.
        OtherRankError: It failed on another rank.
    """
    started = time.monotonic()
    with ExitStack() as held:
        with group.agree("Preparing the memory bank"):
            if group.rank == 0:
                held.enter_context(folder.locked_for_building())
        with group.agree("Preparing the memory bank"):
            make_folder(folder.building)
            try:
                _check_visible(folder.building / LOCK, folder)
            except ManifestError:
                with suppress(OSError):
                    folder.building.rmdir()  # made on a disk of this node's own
                raise
        trained = _train(folder, plan, encode, group)
        checksums = _write_chunks(folder, plan, encode, sample, trained, group, progress)
        with group.agree("Publishing the memory bank"):
            if group.rank == 0:  # alone: the folder has another name once it has published
                if trained:
                    checksums[TRAINED] = sha256_of(folder.building / TRAINED)
                folder.publish(
                    Manifest(
                        identity=plan.identity,
                        fingerprint=plan.fingerprint,
                        num_entries=len(plan.entry_ids),
                        width=plan.width,
                        kind=plan.choice.kind,
                        nlist=plan.choice.nlist,
                        metric="squared Euclidean",
                        created=datetime.now(UTC).isoformat(timespec="seconds"),
                        build_s=round(time.monotonic() - started, 2),
                        ranks=group.size,
                        files=dict(sorted(checksums.items())),
                    )
                )
    with group.agree("Publishing the memory bank"):
        _check_visible(folder.manifest, folder)


def _check_visible(path: Path, folder: BankFolder) -> None:
    if not appears(path):
        raise ManifestError(
            f"{folder.root}: what the first rank wrote there cannot be seen from here; put "
            "runs_dir or bank.path on a disk that all nodes share."
        )


def _train(
    folder: BankFolder, plan: BankPlan, encode: Encode, group: RankGroup
) -> dict[str, Tensor]:
    """Train centroids and codebook on the first rank; empty for kinds without any."""
    if plan.choice.nlist == 0:
        return {}
    found = folder.read_part(TRAINED) if group.rank == 0 else None
    if not group.any(found is not None):
        wanted = max(FEWEST_TRAINING_POINTS, plan.choice.nlist * POINTS_PER_LIST)
        places = np.linspace(0, len(plan.entry_ids) - 1, min(wanted, len(plan.entry_ids)))
        ids = plan.entry_ids[torch.from_numpy(np.unique(places.astype(np.int64)))]
        with group.agree("Encoding the sample that the index is trained on"):
            mine = encode(ids.tensor_split(group.size)[group.rank])
            check_finite("keys", mine)
        vectors = group.gather_rows(mine)
        with group.agree("Training the index"):
            if vectors is not None:
                folder.write_part(TRAINED, train_codes(plan.choice, vectors))
    with group.agree("Training the index"):
        _check_visible(folder.building / TRAINED, folder)
        trained = folder.read_part(TRAINED)
    assert trained is not None
    return trained


def _write_chunks(
    folder: BankFolder,
    plan: BankPlan,
    encode: Encode,
    sample: SampleQueries,
    trained: dict[str, Tensor],
    group: RankGroup,
    progress: Callable[[int], None] | None,
) -> dict[str, str]:
    """Encode and write the chunks that are not there yet. Returns checksums of all, all ranks'."""
    mine: dict[str, str] = {}
    index = trained_index(plan.choice, trained) if trained else None
    with group.agree("Building the memory bank"):
        for chunk in plan.placement.chunks_of(group.rank, group.size):
            name, ids = chunk_name(chunk), plan.entry_ids[plan.placement.entries(chunk)]
            if folder.read_part(name) is None:
                keys = encode(ids)
                check_finite("keys", keys)
                tensors = {"keys": keys} if index is None else {"codes": encode_keys(index, keys)}
                if not plan.choice.is_exact:
                    tensors |= nearest_in_chunk(keys, ids, sample)
                mine[name] = folder.write_part(name, tensors)
            else:
                mine[name] = sha256_of(folder.building / name)
            if progress is not None:
                progress(len(ids))
    checksums: dict[str, str] = {}
    for part in group.gather_objects(mine):
        assert isinstance(part, dict)
        checksums |= part
    return checksums
