"""From training windows to a searchable memory: keys, the bank on disk, this rank's index.

Shape legend (this file):
    m  entries     L  seq_len     Z2  width of a key
"""

import copy
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dist_train import distributed, local_copy, progress, terminal
from dist_train.data.clock import check_clock, clock_offsets
from dist_train.data.windows import ForecastData, Ints
from dist_train.memory_account import account
from memory_index import faiss_gpu
from memory_index.atomic_file import is_disk_full
from memory_index.bank import MemoryBank
from memory_index.builder import BankPlan, build_bank
from memory_index.config import BankConfig, IndexKind
from memory_index.exclusion import Exclusion
from memory_index.groups import OtherRankError
from memory_index.index_choice import IndexChoice, choose_index
from memory_index.loading import load_index
from memory_index.manifest import ManifestError, StaleMemoryError, version_of
from memory_index.recall import SampleQueries, sample_ids
from memory_index.sharded_index import Encode, ShardedIndex
from memory_index.store import BankFolder, bank_folders, versions
from model.config import GramConfig
from model.pattern_encoder import AnchoredEncoder, DualEncoder, build_encoder, fingerprint

ENCODE_CHUNK = 1024
# A progress bar for what takes no time would only be noise.
ENTRIES_WORTH_A_BAR = 200_000

REFUSALS = (ManifestError, StaleMemoryError, OtherRankError)
"""What a rank raises that cannot use a bank, or hears that another one cannot."""

FULL_DISK = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]")


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveMemory:
    """An index and the encoder that made its keys."""

    encoder: DualEncoder | AnchoredEncoder
    fingerprint: str
    index: ShardedIndex
    choice: IndexChoice
    version: str
    """Name of the bank's folder."""

    @property
    def parts(self) -> tuple["LiveMemory", ...]:
        """One for each source that has entries."""
        return (self,)


class MemoryBuilder:
    """Makes the memory of one state of the encoder after the other; built banks are reused."""

    def __init__(
        self,
        data: ForecastData,
        gram: GramConfig,
        config: BankConfig,
        root: Path | None,
        *,
        bank: MemoryBank | None = None,
    ) -> None:
        """Choose the entries and the index; collective.

        Args:
            data: The series.
            gram: Which key.
            config: Which windows, which index, and where.
            root: Folder of the banks where ``bank.path`` names none; None: one that goes away.
            bank: The entries, where they are chosen already; of these series and settings.

        Raises:
            DataError: Series overlap in time and share no clock, see
                :func:`dist_train.data.clock.check_clock`.
            ValueError: A GPU was asked for and there is none.
        """
        self.data, self.gram, self.config = data, gram, config
        if bank is None:
            check_clock(data.series_set)
            bank = choose_entries(data, config, clock_offsets(data.series_set))
        self.bank = bank
        self.device = _search_device(config)
        # One to copy: a new one draws random numbers, from the generator of the training's dropout.
        self._encoder = build_encoder(gram, bank.seq_len).requires_grad_(False).eval()
        self.width = self._encoder.key_width
        chosen = Path(config.path) if config.path else root
        self.choice = self._choose_index(chosen)
        self._all = distributed.rank_group("build", "world")
        self._sharing = distributed.rank_group("search", self.choice.group)
        # The same ranks; measuring the next index must not mix with searches in the live one.
        self._measuring = distributed.rank_group("measure", self.choice.group)
        self._begun: BankFolder | None = None
        self._forget: weakref.finalize[..., Any] | None = None
        if chosen is None:
            chosen, self._forget = temporary_root(self)
        self.root = chosen

    @property
    def parts(self) -> tuple["MemoryBuilder", ...]:
        """One for each source that has entries."""
        return (self,)

    @property
    def reason(self) -> str:
        """How the bank is searched and why, for the log."""
        return self.choice.reason

    def open(self, state: Mapping[str, Tensor]) -> LiveMemory:
        """Load the bank of an encoder, or build it where there is none that fits; collective.

        Args:
            state: State of the encoder, equal on every rank; empty for anchored keys.

        Raises:
            ManifestError: ``bank.build`` is never and there is none that fits, or the folder
                cannot be used.
            ValueError: A key is not finite.
            OtherRankError: It failed on another rank.
        """
        # The training of an index gives no marks.
        progress.enter("building the memory", patience=3)
        encoder = copy.deepcopy(self._encoder)
        encoder.load_state_dict(dict(state))
        encoder.to(self.device)
        name = fingerprint(encoder)
        plan = BankPlan(
            choice=self.choice,
            entry_ids=self.bank.ids,
            width=self.width,
            identity=self._identity(name),
            fingerprint=name,
        )
        self._begun = folder = BankFolder(self.root, version_of(plan.identity))
        encode = self._encode_with(encoder)
        # What finds everything needs nothing measured.
        ids = sample_ids(self.bank.ids[:0] if self.choice.is_exact else self.bank.ids)
        training = Exclusion(
            seq_len=self.bank.seq_len, pred_len=self.bank.pred_len, past_only=False
        )
        hidden = self.bank.hidden(self.bank.series(ids), self.bank.starts(ids), training)
        with account.phase("bank"):
            sample = SampleQueries(keys=encode(ids), hidden=hidden)
            index = self._load_or_build(folder, plan, encode, sample)
        return LiveMemory(
            encoder=encoder,
            fingerprint=name,
            index=index,
            choice=self.choice,
            version=folder.version,
        )

    def prune(self, keep: set[str]) -> None:
        """Delete the banks of other states of the encoder; on the main rank.

        Only in a folder of the run's own: one that ``bank.path`` names may serve other runs.
        """
        if self.config.path is None and distributed.is_main_rank():
            for version in versions(self.root):
                if version not in keep:
                    BankFolder(self.root, version).delete()

    def give_up_if_disk_is_full(self, error: Exception) -> bool:
        """Say that a bank could not be written, and delete what is there of it. Not collective.

        Args:
            error: What :meth:`open` raised on this rank. All ranks have agreed on it already, the
                others have :class:`OtherRankError`.

        Returns:
            Whether a disk was full, on any rank; else nothing was done.
        """
        # Without asking the others, who may not come here: they quote the error of that rank.
        quoted = isinstance(error, OtherRankError) and FULL_DISK.search(str(error)) is not None
        if not (quoted or is_disk_full(error)):
            return False
        if distributed.is_main_rank():
            if self._begun is not None:
                shutil.rmtree(self._begun.building, ignore_errors=True)
            sys.stderr.write(
                f"warning: the memory could not be encoded anew in {self.root} ({error}); the "
                "training goes on with the memory that it has. Free some space there.\n"
            )
        return True

    def close(self) -> None:
        """Delete a folder that was made to go away. Not collective."""
        if self._forget is not None:
            self._forget()

    def _choose_index(self, root: Path | None) -> IndexChoice:
        """Choose how the entries are searched; collective.

        In a folder of the run's own ``bank.index=auto`` keeps to the kind that is there, where it
        would choose another one on the ranks that there are now, and encode everything anew.
        """
        nodes = distributed.node_names()
        choose = partial(
            choose_index,
            num_entries=len(self.bank),
            width=self.width,
            on_gpu=self.device.type == "cuda",
            ranks_per_node=min(nodes.count(name) for name in nodes),
            num_nodes=len(set(nodes)),
        )
        config = self.config
        if config.index == "auto" and config.build != "always" and not config.path and root:
            there = self._indexes_in(root) if distributed.is_main_rank() else []
            there = cast(list[BankConfig], distributed.gather_objects(there)[0])
            kept: list[IndexChoice] = []
            for one in there:
                with suppress(ValueError):  # too large for the ranks that there are now
                    kept.append(choose(one))
            with suppress(ValueError):
                own = choose(config)
                if any((one.kind, one.nlist) == (own.kind, own.nlist) for one in kept):
                    return own
            if kept:
                return replace(kept[0], reason=f"{kept[0].reason}, as the bank in {root}")
        return choose(config)

    def _indexes_in(self, root: Path) -> list[BankConfig]:
        """These settings, searched as each bank of these entries that has lists; newest first."""
        content, found = self._content(), []
        for version in versions(root):
            try:
                manifest = BankFolder(root, version).open()
            except ManifestError:
                continue
            chosen = {"encoder", "index", "nlist"}
            same = {key: value for key, value in manifest.identity.items() if key not in chosen}
            if same == content and manifest.nlist:
                kind, nlist = cast(IndexKind, manifest.kind), self.config.nlist or manifest.nlist
                found.append(replace(self.config, index=kind, nlist=nlist))
        return found

    def _load_or_build(
        self, folder: BankFolder, plan: BankPlan, encode: Encode, sample: SampleQueries
    ) -> ShardedIndex:
        config = self.config
        # Ranks may see a folder at different moments: what the first one sees holds for all.
        with self._all.agree("Looking for the memory bank"):
            seen = distributed.is_main_rank() and folder.exists
        found = self._all.any(seen)
        if found and config.build != "always":
            index, failure = None, None
            try:
                index = self._load(folder, plan, encode, sample)
            except Exception as error:  # whatever it is, the other ranks wait to hear of it
                failure = error
            if not self._all.any(failure is not None):
                assert index is not None
                return index
            # Only a bank that was refused can be mended by building it: not too little memory.
            refused = failure is None or isinstance(failure, REFUSALS)
            if config.build == "never" or self._all.any(not refused):
                with self._all.agree("Loading the memory bank"):
                    if failure is not None:
                        raise failure
            elif distributed.is_main_rank():
                terminal.say(f"memory: built anew: {failure or 'another rank refused it'}")
        elif config.build == "never":
            raise ManifestError(
                f"bank.build=never: {folder.path} does not exist; "
                f"{_what_is_there(self.root, plan.identity)}; build it with timellm bank build, "
                "or set bank.build=auto."
            )
        with tqdm(
            total=len(plan.entry_ids),
            desc="encoding the memory",
            unit="entry",
            disable=not distributed.is_main_rank() or len(plan.entry_ids) < ENTRIES_WORTH_A_BAR,
        ) as bar:
            ranks = distributed.world_size()

            def count(entries: int) -> None:
                progress.mark()
                bar.update(min(entries * ranks, len(plan.entry_ids) - bar.n))

            build_bank(folder, plan, encode, sample, self._all, count)
        # On all ranks: none may go on, and delete the folder in the end, while one still reads it.
        with self._all.agree("Loading the memory bank"):
            return self._load(folder, plan, encode, sample)

    def _load(
        self, folder: BankFolder, plan: BankPlan, encode: Encode, sample: SampleQueries
    ) -> ShardedIndex:
        config = self.config
        index = load_index(
            BankFolder(local_copy.find(self.root, folder.version), folder.version),
            plan,
            encode,
            sample,
            self._measuring,
            device=self.device,
            effort=config.nprobe,
            min_recall=config.min_recall,
            refine=config.refine,
        )
        index.group = self._sharing
        return index

    def _encode_with(self, encoder: DualEncoder | AnchoredEncoder) -> Encode:
        @torch.no_grad()
        def encode(ids: Tensor) -> Tensor:
            keys = torch.empty(len(ids), self.width)
            for first in range(0, len(ids), ENCODE_CHUNK):
                part = slice(first, first + ENCODE_CHUNK)
                windows_mL = self.bank.windows(ids[part]).to(self.device)
                keys[part] = encoder(windows_mL).key.float().cpu()
                progress.mark()
            return keys

        return encode

    def _identity(self, encoder: str) -> dict[str, Any]:
        """All that the content of a bank depends on, as plain JSON values."""
        # These two keep the same keys, one for GPUs and one for CPUs.
        kind = "flat" if self.choice.is_exact else self.choice.kind
        return self._content() | {"encoder": encoder, "index": kind, "nlist": self.choice.nlist}

    def _content(self) -> dict[str, Any]:
        """What says which entries a bank holds, and which key."""
        train = self.data.windows["train"]
        # Entries are numbered on a clock: other dates of the same values give another order.
        begins = self.bank.clock_offsets
        return ({"clock": _hash_of_clock(begins)} if begins and any(begins) else {}) | {
            "data": self.data.series_set.checksum,
            "scalers": _hash_of_scalers(self.data),
            "train_rows": [[int(first), int(end)] for first, end in self.data.memory_rows],
            "seq_len": train.seq_len,
            "pred_len": self.data.pred_len,
            "bank_stride": self.config.bank_stride,
            "limit": self.config.limit,
            "retrieval_key": self.gram.retrieval_key,
            "width": self.width,
        }


def choose_entries(
    data: ForecastData, config: BankConfig, clock_offsets: Sequence[int] | Ints | None
) -> MemoryBank:
    """Choose the entries of the memory: windows of its rows, see ``ForecastData.memory_rows``.

    Args:
        data: The series.
        config: Stride and size.
        clock_offsets: Where each begins on a clock that all share; None: each has its own.
    """
    windows = data.windows["train"]
    offsets = None if clock_offsets is None else [int(offset) for offset in clock_offsets]
    return MemoryBank(
        windows.values, data.memory_rows, windows.seq_len, data.pred_len, config, offsets
    )


def temporary_root(owner: object) -> tuple[Path, "weakref.finalize[..., Any] | None"]:
    """Make a folder of banks that goes away with its owner; collective.

    Returns:
        The folder, and on the main rank what deletes it before that.
    """
    name, forget = "", None
    if distributed.is_main_rank():
        name = tempfile.mkdtemp(prefix="timellm-bank-")
        forget = weakref.finalize(owner, shutil.rmtree, name, ignore_errors=True)
    return Path(str(distributed.rank_group("build", "world").gather_objects(name)[0])), forget


def bank_root(run_folder: Path) -> Path | None:
    """Folder of a run's banks; None where it holds none and nothing can be written there.

    Collective: the first rank made the folder a moment ago, and others may not see it yet.
    """
    folder, is_there = run_folder / "bank", False
    if distributed.is_main_rank():
        nearest = folder if folder.exists() else run_folder
        is_there = os.access(nearest, os.W_OK) or bool(bank_folders(folder))
    return folder if distributed.any_rank(is_there) else None


def _search_device(config: BankConfig) -> torch.device:
    device = distributed.device()
    if config.device == "gpu" and device.type != "cuda":
        raise ValueError("bank.device=gpu: there is no CUDA device here; use bank.device=auto.")
    if config.device == "cpu" or config.index == "hnsw" or device.type != "cuda":
        return torch.device("cpu")
    if config.index != "exact" and not faiss_gpu.is_there():
        if config.device == "gpu":
            raise ValueError(
                f"bank.device=gpu and bank.index={config.index}: the FAISS installed here has no "
                "GPU part, or sees no GPU: `make setup EXTRA=gpu`, or bank.index=exact, which "
                "needs none."
            )
        if distributed.is_main_rank():
            warnings.warn(
                "the FAISS installed here has no GPU part, or sees no GPU: the memory is searched "
                "on the CPU (make setup EXTRA=gpu).",
                stacklevel=2,
            )
        return torch.device("cpu")
    return device


def _hash_of_scalers(data: ForecastData) -> str:
    digest = hashlib.sha256()
    for scaler in data.scalers:
        digest.update(scaler.mean.tobytes() + scaler.scale.tobytes())
    return digest.hexdigest()


def _hash_of_clock(offsets: Sequence[int]) -> str:
    return hashlib.sha256(np.array(offsets, dtype=np.int64).tobytes()).hexdigest()


def _what_is_there(root: Path, identity: dict[str, Any]) -> str:
    """Say what the nearest bank of a folder differs in."""
    nearest: list[str] | None = None
    for version in versions(root):
        try:
            other = BankFolder(root, version).open().identity
        except ManifestError:
            continue
        differing = [key for key in identity if other.get(key) != identity[key]]
        if nearest is None or len(differing) < len(nearest):
            nearest = [f"{key} ({other.get(key)}, not {identity[key]})" for key in differing]
    if nearest is None:
        return f"{root} holds no bank"
    return f"the nearest bank of {root} has another {', '.join(nearest)}"
