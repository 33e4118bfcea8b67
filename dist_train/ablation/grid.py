"""A grid of runs: one line of keys for each row, the format of ``launch/slurm_array.sbatch`` too.

    # name: both
    --tapr.use_tapr true --gram.use_gram true

A line holds the keys in which its row differs from the configuration, quoted as in a shell. Empty
lines and those that begin with # do not count; ``# name: ...`` names the row of the next line, as a
``--name`` on the line does. The first row is what the others are compared with.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.baseline_names import BASELINES
from dist_train.config import ConfigError

GRIDS = Path("configs") / "ablation"
"""Folder of the grids that have a name, in the project's folder."""

_PROJECT = Path(__file__).parents[2]
_NAME_LINE = re.compile(r"#\s*name:\s*(\S.*?)\s*$")
_ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a grid."""

    name: str
    """Becomes part of the name of a folder."""

    keys: tuple[str, ...]
    """Arguments in which it differs from the configuration."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows in the order of their file; the first is what the others are compared with."""

    name: str
    rows: tuple[Row, ...]


def read_grid(name: str) -> Grid:
    """Read a grid by its name, or from a file of one's own.

    Raises:
        ConfigError: There is no such grid, or a line of it cannot be read.
    """
    path = _find(name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--grid {name}: {path} cannot be read ({error}); name another.") from (
            error
        )
    rows = tuple(_read_rows(lines, path))
    if not rows:
        raise ConfigError(
            f"--grid {name}: {path} holds no rows; give it one line of keys for each."
        )
    names = [row.name for row in rows]
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise ConfigError(f"--grid {name}: two rows are named {twice[0]}; name each anew.")
    taken = [one for one in names if one in BASELINES.values()]
    if taken:
        raise ConfigError(
            f"--grid {name}: a row is named {taken[0]}, as a baseline of the table is; name it "
            "anew: what has been trained for it is found again."
        )
    return Grid(name=re.sub(r"[^A-Za-z0-9._-]", "-", path.stem), rows=rows)


def split_line(line: str) -> list[str]:
    """Split a line into words as ``xargs`` does, and with it the array script.

    Raises:
        ValueError: A quote is not closed.
    """
    words = shlex.shlex(line, posix=True, punctuation_chars="")
    words.whitespace_split, words.commenters = True, ""
    words.escapedquotes = ""  # within quotes a backslash is a backslash
    return list(words)


def join_line(words: Sequence[str]) -> str:
    """Write words as a line that :func:`split_line` and ``xargs`` read back.

    Raises:
        ConfigError: A word holds both kinds of quotes, or a line break.
    """
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./:=,@%+-]+", word):
        return word
    for quote in ("'", '"'):
        if quote not in word and "\n" not in word:
            return f"{quote}{word}{quote}"
    raise ConfigError(f"{word!r:.60}: both kinds of quotes cannot stand on one line of a grid.")


def _find(name: str) -> Path:
    own = Path(name)
    if own.suffix and own.is_file():
        return own
    for folder in (Path.cwd(), _PROJECT):
        path = folder / GRIDS / f"{name}.grid"
        if path.is_file():
            return path
    known = sorted(path.stem for path in (_PROJECT / GRIDS).glob("*.grid"))
    raise ConfigError(
        f"--grid {name}: no such grid; give one of {', '.join(known)}, or the path of a file with "
        "one line of keys for each row."
    )


def _read_rows(lines: Iterable[str], path: Path) -> Iterable[Row]:
    named = None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            found = _NAME_LINE.match(text)
            named = found.group(1) if found else named
            continue
        try:
            words = split_line(text)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}: {text:.80}; close the quote.") from error
        own, keys = _take_name(words)
        name = own or named or _name_of(keys)
        if not _ROW_NAME.fullmatch(name):
            raise ConfigError(
                f"{path}:{number}: the row's name {name!r:.80} must be letters, digits, '.', '_' "
                "or '-', 60 at most: it becomes the name of a folder."
            )
        named = None
        yield Row(name=name, keys=tuple(keys))


def _take_name(words: list[str]) -> tuple[str | None, list[str]]:
    """Part ``--name X`` or ``--name=X`` from the other words of a line."""
    name, keys = None, []
    rest = iter(words)
    for word in rest:
        if word == "--name":
            name = next(rest, "")
        elif word.startswith("--name="):
            name = word.removeprefix("--name=")
        else:
            keys.append(word)
    return name, keys


def _name_of(keys: Sequence[str]) -> str:
    """Name a row after its keys: ``--gram.top_k 3`` is ``top_k_3``."""
    words = []
    for word in keys:
        key, equals, value = word.partition("=")
        words.append(key.rpartition(".")[2] + equals + value if word.startswith("--") else word)
    return re.sub(r"[^A-Za-z0-9._]+", "_", "_".join(words)).strip("_.")[:60]
