"""``timellm bank``: build the memory of a run before its training, and look at banks on disk."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_train import distributed, watchdog
from dist_train.config import ConfigError, RunConfig, load_saved_config
from dist_train.corpus_memory import CorpusMemoryBuilder, open_builder
from dist_train.data.clock import check_clocks
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.memory_build import LiveMemory, MemoryBuilder, bank_root
from memory_index.manifest import ManifestError
from memory_index.store import BankFolder, bank_folders

Builder = MemoryBuilder | CorpusMemoryBuilder


def build(config: RunConfig, run: Path | None) -> dict[str, Any] | None:
    """Build a bank, or find it built; collective.

    Args:
        config: The configuration; ``bank.path`` says where. Ignored where ``run`` is given.
        run: A trained run: its encoder, its data, its folder.

    Returns:
        What was built, on rank 0; None on the others.

    Raises:
        ConfigError: There is nothing to build, or nowhere.
        ManifestError: The folder cannot be used.
    """
    distributed.initialize_process_group(config.train.collective_timeout_s)
    try:
        began = time.monotonic()
        with watchdog.watch(config.train.watchdog_s):
            builder, state = _of_run(run) if run is not None else _of_config(config)
            live = builder.open(state)
        if not distributed.is_main_rank():
            return None
        told = {
            "ranks": distributed.world_size(),
            "seconds": round(time.monotonic() - began, 1),
        }
        banks = [_built(*pair) for pair in zip(builder.parts, live.parts, strict=True)]
        return banks[0] | told if len(banks) == 1 else {"banks": banks} | told
    finally:
        distributed.shut_down()


def info(path: Path | None, run: Path | None, *, verify: bool) -> dict[str, Any]:
    """Print a line for every fact of every bank below a folder.

    Args:
        path: Folder of banks, or of one bank.
        run: Folder of a run, instead.
        verify: Read every file and compare its checksum.

    Returns:
        The same as plain JSON values.

    Raises:
        ConfigError: Neither or both were given.
        ManifestError: There is no bank, or it is damaged.
    """
    if (path is None) == (run is None):
        raise ConfigError("timellm bank info: give --path or --run, one of them.")
    root = path if path is not None else _bank_folder_of(run)
    is_bank = (root / "manifest.json").exists()
    found = [BankFolder(root.parent, root.name)] if is_bank else bank_folders(root)
    if not found:
        raise ManifestError(f"{root}: holds no bank; build one with timellm bank build.")
    banks = [_describe(folder, verify=verify) for folder in found]
    for bank in banks:
        for key, value in bank.items():
            print(f"{key:>14}  {value}")
        print()
    return {"banks": banks}


def _built(builder: MemoryBuilder, live: LiveMemory) -> dict[str, Any]:
    """Say what was built of one source, and print it."""
    folder = BankFolder(builder.root, live.version)
    print(f"{folder.path}: {len(builder.bank):,} entries; {live.choice.reason}", flush=True)
    return {
        "path": str(folder.path),
        "entries": len(builder.bank),
        "kind": live.choice.kind,
        "effort": live.index.effort,
        "recall_at_5": _recall(folder, live),
        "gib": round(folder.size_gib(), 3),
    }


def _describe(folder: BankFolder, *, verify: bool) -> dict[str, Any]:
    manifest = folder.open()
    if verify:
        for name in manifest.files:
            folder.load(manifest, name)
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.created)
    recall = folder.read_recall()
    return {
        "path": str(folder.path),
        "entries": manifest.num_entries,
        "key_width": manifest.width,
        "index": manifest.kind,
        "lists": manifest.nlist,
        "metric": manifest.metric,
        "chunks": sum(name.startswith("chunk_") for name in manifest.files),
        "gib": round(folder.size_gib(), 3),
        "fingerprint": manifest.fingerprint[:16],
        "retrieval_key": manifest.identity.get("retrieval_key"),
        "built": manifest.created,
        # A clock that was wrong then, or is now, makes no bank younger than new.
        "age_hours": round(max(0.0, age.total_seconds()) / 3600, 2),
        "build_s": manifest.build_s,
        "built_by_ranks": manifest.ranks,
        "recall_at_5": "exact" if manifest.kind in ("exact", "flat") else recall
        and {str(effort): round(value, 4) for effort, value in recall["curve"].items()},
        "verified": verify,
    }  # fmt: skip


def _recall(folder: BankFolder, live: LiveMemory) -> float | None:
    """Measured recall at its effort; 1 where the search misses nothing, None where unknown."""
    if live.choice.is_exact:
        return 1.0
    recall = folder.read_recall()
    return None if recall is None else recall["curve"].get(live.index.effort)


def _of_config(config: RunConfig) -> tuple[Builder, Mapping[str, Tensor]]:
    if config.gram.retrieval_key != "anchored":
        raise ConfigError(
            f"gram.retrieval_key={config.gram.retrieval_key}: its keys come from a trained "
            "encoder; give the folder of a trained run with --run, or use anchored."
        )
    if config.bank.path is None:
        raise ConfigError("bank.path: name the folder that the bank is built in.")
    data = load_forecast_data(config.data)
    check_clocks(data.sources)
    return open_builder(data, config.gram, config.bank, None), {}


def _of_run(run: Path) -> tuple[Builder, Mapping[str, Tensor]]:
    from dist_train.checkpoint import load_checkpoint
    from dist_train.loading import load_training_data

    checkpoint = load_checkpoint(run / "best")
    config = load_saved_config(run / "best" / "config.yaml")
    if config.gram.use_gram is not True:
        raise ConfigError(f"--run {run}: this run has no memory (gram.use_gram).")
    root = bank_root(run)
    if root is None and config.bank.path is None:
        raise ConfigError(f"--run {run}: nothing can be written there; build in a copy of the run.")
    data: ForecastData = load_training_data(config, checkpoint.series)
    builder = open_builder(data, config.gram, config.bank, root)
    return builder, checkpoint.memory


def _bank_folder_of(run: Path | None) -> Path:
    assert run is not None
    config_file = run / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(f"--run {run}: no run here; give the folder of a run.")
    chosen = load_saved_config(config_file).bank.path
    return Path(chosen) if chosen else run / "bank"
