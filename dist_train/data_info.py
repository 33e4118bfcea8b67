"""``timellm data info``: what the sources of a corpus are, and whether they are whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_train.config import load_run_config
from dist_train.data.arrow_series import Built, is_source, read_facts, verify
from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.lengths import fits, num_windows
from dist_train.data.source_files import name_of
from dist_train.data.splits import borders

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def info(folder: Path, config: Path | None, *, verify_bytes: bool) -> dict[str, Any]:
    """Print a table of the built sources below a folder.

    Args:
        folder: Of sources, or of one.
        config: A configuration whose windows are counted.
        verify_bytes: Read every byte and compare checksums.

    Returns:
        The same as plain JSON values.

    Raises:
        ConfigError: The configuration cannot be used.
        DataError: There is no source.
    """
    data = None if config is None else load_run_config(config).data
    found = [folder] if is_source(folder) else sorted(_sources_below(folder))
    if not found:
        raise DataError(f"{folder}: holds no built source; make one with timellm data build.")
    sources = [_describe(one, data, verify_bytes=verify_bytes) for one in found]
    _print_table(sources)
    return {
        "path": str(folder),
        "sources": sources,
        "damaged": [one["source"] for one in sources if one["damage"] is not None],
    }


def told(built: Built) -> str:
    """Say in a line what a source holds."""
    span = f"{built.begins} to {built.ends}"
    frequency = built.frequency or "irregular"
    return (
        f"{len(built.ids):,} series, {sum(built.rows):,} rows, {frequency}, {span}, "
        f"{_size(built.bytes)}"
    )


def _sources_below(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and (is_source(path) or any(path.glob(".series.arrow.*"))):
                yield path


def _describe(folder: Path, data: DataConfig | None, *, verify_bytes: bool) -> dict[str, Any]:
    try:
        built = verify(folder) if verify_bytes else read_facts(folder)
    except DataError as error:
        return {"source": folder.name, "path": str(folder), "damage": str(error)}
    counted = {} if data is None else _count_windows(folder, built, data)
    return {
        "source": folder.name,
        "path": str(folder),
        "series": len(built.ids),
        "rows": sum(built.rows),
        "frequency": built.frequency,
        "from": built.begins,
        "to": built.ends,
        "bytes": built.bytes,
        **counted,
        "verified": verify_bytes,
        "damage": None,
    }


def _count_windows(folder: Path, built: Built, data: DataConfig) -> dict[str, int]:
    """Training windows of all long enough series, and how many series are not."""
    windows, too_short = 0, 0
    own = _entry_of(folder, built, data)
    pred_len = data.pred_len if own is None else data.horizon_of(own)
    for rows in built.rows:
        split = borders(rows, built.borders)
        if fits(split, data.seq_len, pred_len):
            begin, end = split["train"]
            windows += num_windows(end - begin, data.seq_len, pred_len, False, data.train_stride)
        else:
            too_short += 1
    return {"windows": windows, "too_short": too_short}


def _entry_of(folder: Path, built: Built, data: DataConfig) -> SourceConfig | None:
    """What a configuration says of a source: of its folder, or of what it was built from."""
    sources = data.sources or []
    for one in sources:
        if one.path is not None and Path(one.path).expanduser().resolve() == folder.resolve():
            return one
    return next((one for one in sources if name_of(one) == built.name), None)


def _size(number: float) -> str:
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == _UNITS[0] else f"{number:.1f} {unit}"


def _print_table(sources: list[dict[str, Any]]) -> None:
    """Print a line for each source, and below them what is wrong with which."""
    shown = []
    for one in sources:
        cells = {"source": one["source"]}
        for key in ("series", "rows", "frequency", "from", "to", "bytes", "windows", "too_short"):
            if key in one:
                cells[key] = _cell(key, one[key])
        cells["checks"] = "verified" if one.get("verified") else "ok"
        if one["damage"] is not None:
            cells["checks"] = "damaged"
        shown.append(cells)
    titles = list(dict.fromkeys(key for cells in shown for key in cells if key != "checks"))
    titles.append("checks")
    lines = [dict(zip(titles, titles, strict=True)), *shown]
    width = {key: max(len(line.get(key, "")) for line in lines) for key in titles}
    for line in lines:
        print("  ".join(line.get(key, "").ljust(width[key]) for key in titles).rstrip())
    for one in sources:
        if one["damage"] is not None:
            print(f"{one['source']}: {one['damage']}")


def _cell(key: str, value: Any) -> str:
    if key == "bytes":
        return _size(value)
    if value is None:
        return "irregular"
    return f"{value:,}" if isinstance(value, int) else str(value)
