"""``timellm data build``: the sources of a configuration, each into a folder of its own."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dist_train.config import ConfigError, RunConfig, world_size_of_environment
from dist_train.data.arrow_series import (
    CORPUS_FILE,
    is_built,
    is_source,
    make_room,
    read_facts,
    settings_of,
    write_series,
)
from dist_train.data.config import DataConfig, DataError, SeriesConfig, SourceConfig
from dist_train.data.series import data_file
from dist_train.data.source_files import checksum_of_source, files_of, names_of, parts_of
from dist_train.data.sources import naming
from dist_train.data_info import told
from memory_index.atomic_file import sweep, write_text
from memory_index.shared_disk import try_lock

LOCK = ".timellm-build.lock"
"""Deleted at the end, so it must be nobody else's."""

LONGEST_NAME = 200
"""Bytes; file systems take 255, and files that are being written have longer names."""

_HEAD = """\
# Written by timellm data build: give it with --config, or name it in extends.
# A path that begins with ./ begins at the folder of this file.
"""


class _Text(str):
    """Text that stays text, although it may look like a number."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes where it has to stay text."""


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")
)


def build(config: RunConfig, out: Path) -> dict[str, Any]:
    """Build the sources of a configuration, those that are not there yet.

    Args:
        config: Its ``data`` says which.
        out: Folder that gets a folder for each, and the configuration that names them.

    Returns:
        What was built, as plain JSON values.

    Raises:
        ConfigError: The folder cannot be used, or a source's name cannot be that of a folder.
        DataError: A source cannot be used, or another one lies there.
        OSError: It cannot be written; what was begun is gone then.
    """
    if (ranks := world_size_of_environment()) > 1:
        raise ConfigError(
            f"timellm data build was started as one of {ranks} ranks (WORLD_SIZE): start it once."
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder.")
    began = time.monotonic()
    data = config.data
    sources = data.sources if data.sources is not None else [_the_one(data)]
    folders = _folders(out, sources)
    with _locked(out):
        text = _corpus_text(data, sources, folders)
        _refuse_other_corpus(out / CORPUS_FILE, text)
        missing = []
        for number, (source, folder) in enumerate(zip(sources, folders, strict=True)):
            with _named(data, number, source):
                if _is_there(data, source, folder):
                    print(f"{folder.name}: built of the same files before, left alone", flush=True)
                else:
                    missing.append((number, source, folder))
        for number, source, folder in missing:
            with _named(data, number, source):
                parts = parts_of(data, source)
                built = write_series(folder, folder.name, parts, settings_of(source))
            print(f"{folder.name}: {told(built)}", flush=True)
        if not (out / CORPUS_FILE).exists():
            write_text(out / CORPUS_FILE, text)
    facts = [read_facts(folder) for folder in folders]
    return {
        "config": str(out / CORPUS_FILE),
        "built": [folder.name for _, _, folder in missing],
        "sources": len(folders),
        "series": sum(len(one.ids) for one in facts),
        "rows": sum(sum(one.rows) for one in facts),
        "bytes": sum(one.bytes for one in facts),
        "seconds": round(time.monotonic() - began, 1),
    }


def _the_one(data: DataConfig) -> SourceConfig:
    """The one set of a configuration without sources, as a source."""
    return SourceConfig(**{item.name: getattr(data, item.name) for item in fields(SeriesConfig)})


def _folders(out: Path, sources: Sequence[SourceConfig]) -> list[Path]:
    """The folder of each source, which has its name.

    Raises:
        ConfigError: A name is none for a folder, or leads out of ``out``.
    """
    names = names_of(sources)
    for number, name in enumerate(names):
        fits_in = len(os.fsencode(name)) <= LONGEST_NAME if name.isprintable() else False
        is_plain = name == name.strip() and not name.startswith(".") and "/" not in name
        if not (fits_in and is_plain and name != CORPUS_FILE):
            raise ConfigError(
                f"data.sources[{number}].name={name!r:.60}: becomes the name of a folder in --out, "
                "and cannot: give the source a short name of letters and digits."
            )
    return [out / name for name in names]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second build out of a folder, which is made; nothing stays of it if it stays empty."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    if not try_lock(handle, out / LOCK):
        os.close(handle)
        raise ConfigError(
            f"--out {out}: another build runs there right now; wait until it has ended."
        )
    try:
        sweep(out, [CORPUS_FILE])
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):
            out.rmdir()


def _named(data: DataConfig, number: int, source: SourceConfig) -> AbstractContextManager[None]:
    return nullcontext() if data.sources is None else naming(number, source.label)


def _is_there(data: DataConfig, source: SourceConfig, folder: Path) -> bool:
    """Whether a source has been built; refuse at once what cannot be.

    Raises:
        DataError: Its files are not there, or something else lies in its folder.
    """
    if source.path is None:
        data_file(data.of_source(source))
    elif is_source(Path(source.path).expanduser()):
        raise DataError(
            f"path={source.path}: is built already; name the files that it was built of."
        )
    else:
        files_of(source)
    if not is_built(folder):
        make_room(folder)
        return False
    built, settings = read_facts(folder), settings_of(source)
    other = next((key for key in settings if settings[key] != built.settings.get(key)), None)
    if other is not None:
        raise DataError(
            f"{folder} was built with {other}={built.settings.get(other)!r}, and "
            f"{settings[other]!r} is asked for: give the source another name, or delete that "
            "folder."
        )
    if built.checksum != checksum_of_source(data, source):
        raise DataError(
            f"{folder} was built of other files, or they have changed: give the source another "
            "name, or delete that folder."
        )
    return True


def _corpus_text(data: DataConfig, sources: Sequence[SourceConfig], folders: list[Path]) -> str:
    """The configuration by which a run finds what was built."""
    plain = SourceConfig()
    entries = []
    for source, folder in zip(sources, folders, strict=True):
        name, path = _Text(folder.name), _Text(f"./{folder.name}")
        entry: dict[str, Any] = {"name": name, "path": path}
        entry |= {"weight": source.weight, "percent": source.percent}
        for key in ("memory_percent", "pred_len", "too_short"):
            if getattr(source, key) != getattr(plain, key):
                entry[key] = getattr(source, key)
        entries.append(entry)
    section: dict[str, Any] = {"sources": entries}
    if any(source.pred_len for source in sources):  # which is at most that of the run
        section = {"pred_len": data.pred_len, **section}
    if data.temperature != DataConfig().temperature:
        section = {"temperature": data.temperature, **section}
    return _HEAD + yaml.dump({"data": section}, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _refuse_other_corpus(file: Path, text: str) -> None:
    if file.exists() and file.read_bytes() != text.encode():
        raise ConfigError(
            f"{file}: differs from what this build would write, and nothing is overwritten: move "
            "it away, or name another --out."
        )
