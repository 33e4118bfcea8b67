"""The memory of a run in a folder of its own: keys, ids, dates, and the histories themselves.

The histories are the training rows alone, standardised as the model reads them; of later rows
only the time stamps are kept, by which a new window is placed.

Shape legend (this file):
    S  series     T  rows of a series     t  its training rows     N  variates
"""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from dist_train.config import RunConfig
from dist_train.corpus_memory import KeptIndex, folder_name
from dist_train.data.series import Series, SeriesSet
from dist_train.data.sources import Source
from dist_train.data.windows import ForecastData, WindowSet
from dist_train.retrieval import Retriever
from dist_train.series_facts import KnownSeries
from memory_index.atomic_file import write_tensors
from memory_index.config import BankConfig
from memory_index.manifest import ManifestError
from memory_index.store import BankFolder

SERIES_FILE = "series.safetensors"
ENCODER_FILE = "encoder.safetensors"


def write_memory(folder: Path, retriever: Retriever) -> dict[str, Any]:
    """Write the memory that a run searches.

    Args:
        folder: A new one.
        retriever: The run's.

    Returns:
        What :func:`read_memory` has to be told, as plain JSON values.
    """
    folder.mkdir(parents=True)
    train = retriever.data.windows["train"]
    ends = [end for _, end in retriever.data.memory_rows]
    dates = [one.dates.astype("datetime64[ns]") for one in retriever.data.series_set.series]
    kept = [values[:end].ravel() for values, end in zip(train.values, ends, strict=True)]
    write_tensors(
        folder / SERIES_FILE,
        {
            "values": torch.from_numpy(np.concatenate(kept)),
            "dates": torch.from_numpy(np.concatenate(dates).astype(np.int64)),
            "rows": torch.tensor([len(part) for part in dates]),
            "train_rows": torch.tensor([list(part) for part in retriever.data.memory_rows]),
        },
    )
    write_tensors(folder / ENCODER_FILE, retriever.snapshot())
    sources = retriever.data.sources
    several = len(sources) > 1
    indexes = {}
    for builder, live in zip(retriever.builder.parts, retriever.live.parts, strict=True):
        name = builder.data.sources[0].name
        place = folder / folder_name(name) if several else folder
        shutil.copytree(
            BankFolder(builder.root, live.version).path,
            place / live.version,
            ignore=shutil.ignore_patterns(".*"),
        )
        # Which index was chosen may depend on the machine; that of the keys is the one that fits.
        indexes[name] = {"index": live.choice.kind, "nlist": live.choice.nlist or None}
    if not several:
        return indexes[sources[0].name]
    return {
        "indexes": indexes,
        "checksums": [source.series_set.checksum for source in sources],
        "off": list(retriever.off),
    }


def read_memory(
    folder: Path, config: RunConfig, facts: dict[str, Any], told: dict[str, Any]
) -> Retriever:
    """Open a memory that :func:`write_memory` wrote.

    Args:
        folder: Of the memory; its files have been verified.
        config: The run.
        facts: What is known of the series.
        told: What writing it returned.

    Raises:
        ManifestError: Its bank does not belong to it.
    """
    checksums = told.get("checksums", [facts["checksum"]])
    data = _read_series(folder, config, facts, checksums)
    of_all = told.get("indexes", {data.sources[0].name: told})
    indexes = {
        name: KeptIndex(kind=one["index"], nlist=one["nlist"]) for name, one in of_all.items()
    }
    bank: BankConfig = replace(
        config.bank,
        path=str(folder),
        build="never",
        shard_group="rank",
        memory_gib=math.inf,  # it was chosen where ranks shared it, and cannot be chosen anew
        device="auto" if {one.kind for one in indexes.values()} == {"exact"} else "cpu",
    )
    retriever = Retriever(data, config.gram, bank, off=told.get("off", ()), indexes=indexes)
    try:
        retriever.refresh(load_file(folder / ENCODER_FILE))
    except ManifestError as error:
        raise ManifestError(f"{error} Export the run anew.") from error
    return retriever


def _read_series(
    folder: Path, config: RunConfig, facts: dict[str, Any], checksums: list[str]
) -> ForecastData:
    tensors = {name: value.numpy() for name, value in load_file(folder / SERIES_FILE).items()}
    known = KnownSeries(facts)
    entries = [known.find(one["id"]) for one in facts["series"]]
    rows_S, ranges = tensors["rows"], [(int(a), int(b)) for a, b in tensors["train_rows"]]
    dates_S = np.split(tensors["dates"].view("datetime64[ns]"), np.cumsum(rows_S)[:-1])
    num_variates = len(entries[0].columns)
    sizes = [end * num_variates for _, end in ranges]
    parts = np.split(tensors["values"], np.cumsum(sizes)[:-1])
    values, series = [], []
    for one, entry, dates, part in zip(facts["series"], entries, dates_S, parts, strict=True):
        # Rows after the training are no part of a memory: nothing may read them.
        whole_TN = np.full((len(dates), num_variates), np.nan, dtype=np.float32)
        whole_TN[: len(part) // num_variates] = part.reshape(-1, num_variates)
        values.append(whole_TN)
        nothing = np.broadcast_to(np.float64(np.nan), whole_TN.shape)
        series.append(
            Series(id=one["id"], dates=dates, values=nothing, columns=tuple(entry.columns))
        )
    shape = (config.data.seq_len, config.data.pred_len, config.data.train_stride)
    told = facts.get("sources", [{**facts, "first": 0}])
    firsts = [one["first"] for one in told]
    sources = tuple(
        Source(series_set=_set_of(one, tuple(series[first:end]), checksum))
        for one, (first, end), checksum in zip(
            told, pairwise([*firsts, len(series)]), checksums, strict=True
        )
    )
    return ForecastData(
        series_set=_set_of(facts, tuple(series), facts["checksum"]),
        scalers=tuple(entry.scaler for entry in entries),
        windows={"train": WindowSet(values, ranges, *shape)},
        split_rows=tuple({"train": part} for part in ranges),
        memory_rows=tuple(ranges),
        sources=sources,
        pred_len=config.data.pred_len,
    )


def _set_of(facts: dict[str, Any], series: tuple[Series, ...], checksum: str) -> SeriesSet:
    return SeriesSet(
        name=facts["name"],
        series=series,
        frequency=facts["frequency"],
        seasonal_period=facts["seasonal_period"],
        description=facts["description"],
        borders=(0.7, 0.1, 0.2),
        checksum=checksum,
    )
