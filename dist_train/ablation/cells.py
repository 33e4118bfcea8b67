"""From a grid to cells: one run for each row, learning rate and seed, none of them twice."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dist_train.ablation.grid import Grid, Row, join_line
from dist_train.baseline_names import DETERMINISTIC
from dist_train.config import (
    ConfigError,
    RunConfig,
    build_parser,
    config_to_dict,
    parse_run_config,
)
from dist_train.data.catalog import CATALOG, ROOT_VARIABLE
from dist_train.data.config import DataConfig, SeriesConfig, SourceConfig
from dist_train.run_folder import flat_settings, may_differ
from model.config import LANGUAGE_MODELS

BUDGET = (
    "train.max_epochs", "train.max_steps", "train.patience", "train.learning_rate",
    "train.batch_size", "train.schedule", "train.eval_every",
)  # fmt: skip
"""What a row may spend; equal for all rows, unless the grid itself varies it."""

_DECIDES_HERE = {*BUDGET, "data.path", "data.sources.path"}
"""Keys in which a resumed run may differ, and a cell may not."""

_UNREAD = (  # section or key, and when nothing reads it
    ("tapr.", lambda config: not config.tapr.use_tapr),
    ("gram.", lambda config: config.gram.use_gram is False),
    ("bank.", lambda config: config.gram.use_gram is False),
    ("gram.refresh_", lambda config: config.gram.retrieval_key == "anchored"),
    ("model.lags", lambda config: config.model.prompt == "none"),
    ("model.num_prompt_lags", lambda config: config.model.prompt == "none"),
    ("model.max_prompt_tokens", lambda config: config.model.prompt == "none"),
    ("backbone.llm_layers", lambda config: config.backbone.kind not in LANGUAGE_MODELS),
    ("backbone.attention", lambda config: config.backbone.kind not in LANGUAGE_MODELS),
)
_UNREAD_BY_BASELINES = (
    ("gram.retrieval_scope", lambda config: len(config.data.sources or ()) < 2),
)
_OF_RETRIEVAL = ("gram.top_k", "gram.temperature", "gram.d_repr", "gram.retrieval_scope", "bank.")
_BASELINES_READ = {
    "ridge_retrieval": (*_OF_RETRIEVAL, "model.anchor_rows"),
    "retrieval": _OF_RETRIEVAL,
    "patchtst": (*BUDGET, "train.weight_decay", "train.gradient_clipping"),
}
"""What baselines read beside the data."""

_SWITCHES = {"tapr.use_tapr", "gram.use_gram"}

Kind = Literal["training", "baselines"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: its folder is ``config.run_folder``."""

    kind: Kind
    config: RunConfig
    arguments: tuple[str, ...]
    """What the run is started with, after ``--config FILE``."""

    names: tuple[str, ...] = ()
    """Baselines that it trains and scores; none for a training."""

    @property
    def folder(self) -> Path:
        """Where its run writes."""
        return self.config.run_folder

    @property
    def log(self) -> Path:
        """What the run prints; beside its folder, which must be the run's own."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def failure(self) -> Path:
        """How it failed; absent unless it has."""
        return self.folder.with_name(f"{self.folder.name}.failed.json")

    def has_settings_of(self, saved: RunConfig) -> bool:
        """Whether a run of these settings would be this cell's."""
        same = _hash_of_cell(saved, self.names) == _hash_of_cell(self.config, self.names)
        return same and saved.train.seed == self.config.train.seed

    @property
    def label(self) -> str:
        """Row and seed, for people."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row with one learning rate: a cell for each seed."""

    row: Row
    learning_rate: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an ablation consists of."""

    base: RunConfig
    folder: Path
    """Of the ablation; its ``cells/`` serves all grids of a configuration."""

    grid: Grid
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    baselines: tuple[Variant, ...]
    """Their rows are named after what is in them; some hold more than one baseline."""

    @property
    def trainings(self) -> list[Cell]:
        """Every training once, in the order of the grid."""
        cells = {cell.folder: cell for variant in self.variants for cell in variant.cells}
        return list(cells.values())

    @property
    def output(self) -> Path:
        """Folder of table and picture."""
        return self.folder / self.grid.name


def make_plan(
    config_file: str,
    overrides: Sequence[str],
    grid: Grid,
    *,
    num_seeds: int,
    learning_rates: Sequence[float] = (),
    baselines: Sequence[tuple[str, ...]] = (),
) -> Plan:
    """Read every row's configuration, and name its cells.

    Args:
        config_file: The configuration that rows differ from.
        overrides: The rest of its command line.
        grid: The rows.
        num_seeds: Seeds of each row, counted up from the configuration's own.
        learning_rates: Peaks that are tried for each row; none: the row's own.
        baselines: Groups of baselines, each run together: one seed where none of them has any.

    Raises:
        ConfigError: A row's configuration is refused; the message names the row.
    """
    if num_seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {num_seeds}.")
    arguments = ("--config", config_file, *overrides)
    base = _parse(arguments, "")
    folder = Path(base.runs_dir) / f"{base.name}-ablation"
    seeds = tuple(range(base.train.seed, base.train.seed + num_seeds))
    variants: list[Variant] = []
    folders: dict[str, Path] = {}
    for row in grid.rows:
        row = replace(row, keys=_fit_anchor(arguments, base, row))
        for rate in learning_rates or (None,):
            keys = row.keys if rate is None else (*row.keys, _rate_key(rate))
            config = _parse([*arguments, *keys], row.name)
            cells = _cells(config, (*overrides, *keys), folder, row.name, seeds, folders)
            variants.append(Variant(row=row, learning_rate=config.train.learning_rate, cells=cells))
    beside = [
        variant
        for names in baselines
        for variant in _baselines(overrides, base, folder, seeds, names, learning_rates, folders)
    ]
    return Plan(
        base=base, folder=folder, grid=grid, seeds=seeds, variants=tuple(variants),
        baselines=tuple(beside),
    )  # fmt: skip


def settings_hash(config: RunConfig, baselines: Sequence[str] = ()) -> str:
    """Hash what decides the numbers of a cell, its seed and what nothing reads aside.

    Only what is not the default counts, so that a key which a later version adds changes nothing.
    ``data.root`` does not: the catalog's files are the same on other machines, in other folders.

    Args:
        config: Settings of the cell.
        baselines: What the cell trains and scores; none: the model.
    """
    defaults = flat_settings(config_to_dict(RunConfig()))
    kept = {
        key: value
        for key, value in flat_settings(config_to_dict(config)).items()
        if (re.sub(r"\[\d+\]", "", key) in _DECIDES_HERE or not may_differ(key))
        and key != "train.seed"
        and value != (defaults[key] if key in defaults else _default_of_source(key))
    }
    if config.data.sources is not None:
        kept["data.sources"] = len(config.data.sources)
    for prefix, is_unread in _UNREAD_BY_BASELINES if baselines else _UNREAD:
        if is_unread(config):
            kept = {k: v for k, v in kept.items() if k in _SWITCHES or not k.startswith(prefix)}
    if baselines:
        read = tuple(key for name in baselines for key in ("data.", *_BASELINES_READ.get(name, ())))
        kept = {key: value for key, value in kept.items() if key.startswith(read)}
    return _short_hash([kept, " ".join(baselines)])


def _hash_of_cell(config: RunConfig, baselines: Sequence[str] = ()) -> str:
    """Hash as :func:`settings_hash`, and where ``data.root`` names another folder, that too."""
    settings, root = settings_hash(config, baselines), _own_root(config.data)
    return settings if root is None else _short_hash([settings, root])


def _own_root(data: DataConfig) -> str | None:
    """Folder that ``data.root`` names; None: nothing is read there, or TIMELLM_DATA_ROOT names it.

    A cell may then be asked for by either of the two.
    """
    in_a_folder = {entry.name for entry in CATALOG.values() if entry.file is not None}
    sources: Sequence[SeriesConfig] = data.sources or [data]
    if not data.root or not any(s.path is None and s.dataset in in_a_folder for s in sources):
        return None
    own, usual = Path(data.root).expanduser().resolve(), os.environ.get(ROOT_VARIABLE)
    if usual and own == Path(usual).expanduser().resolve():
        return None
    return str(own)


def _short_hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _rate_key(rate: float) -> str:
    """The argument of a learning rate, at full length: it is read back as the same number."""
    return f"--train.learning_rate={float(rate)!r}"


def _default_of_source(key: str) -> object:
    """Default of a key of one of ``data.sources``, such as ``data.sources[0].weight``."""
    return getattr(SourceConfig, key.rpartition(".")[2])


def differing_budget(plan: Plan) -> list[str]:
    """Rows that may spend something else than the first, in words."""
    told = []
    first = flat_settings(config_to_dict(plan.variants[0].cells[0].config))
    for variant in plan.variants:
        own = flat_settings(config_to_dict(variant.cells[0].config))
        keys = [key for key in BUDGET if own[key] != first[key]]
        if "train.learning_rate" in keys and len({v.learning_rate for v in plan.variants}) > 1:
            keys.remove("train.learning_rate")  # tried for every row alike, or shown in the table
        if keys:
            told.append(f"{variant.row.name}: {', '.join(f'{key}={own[key]}' for key in keys)}")
    return told


def lines_of(plan: Plan) -> str:
    """Write every training as a line of a grid, for ``launch/slurm_array.sbatch``."""
    lines = [
        f"# {len(plan.trainings)} runs of the grid {plan.grid.name}, written by timellm ablate."
    ]
    lines += [join_line(cell.arguments) for cell in plan.trainings]
    return "\n".join([*lines, ""])


@cache
def _parser() -> Any:
    """One for all rows: making it takes longer than reading with it."""
    return build_parser("timellm ablate")


def _parse(arguments: Sequence[str], row: str) -> RunConfig:
    try:
        return parse_run_config(_parser(), arguments)[0]
    except ConfigError as error:
        raise ConfigError(f"row {row}: {error}" if row else str(error)) from error


def _fit_anchor(arguments: Sequence[str], base: RunConfig, row: Row) -> tuple[str, ...]:
    """Anchor a row without a memory to the ridge, where the configuration's anchor reads one.

    What is retrieved cannot be read where nothing is, nor with a learned key.
    """
    names_anchor = any(key.split("=")[0] == "--model.anchor" for key in row.keys)
    if base.model.anchor != "ridge_retrieval" or names_anchor:
        return row.keys
    without = (*row.keys, "--model.anchor=ridge")
    gram = _parse([*arguments, *without], row.name).gram
    can_read = gram.use_gram is True and gram.retrieval_key == "anchored"
    return row.keys if can_read else without


def _cells(
    config: RunConfig,
    keys: tuple[str, ...],
    folder: Path,
    name: str,
    seeds: Sequence[int],
    folders: dict[str, Path],
) -> tuple[Cell, ...]:
    place = _place(_hash_of_cell(config), folder, name, folders)
    return tuple(_cell("training", config, keys, place, seed) for seed in seeds)


def _baselines(
    overrides: Sequence[str],
    base: RunConfig,
    folder: Path,
    seeds: Sequence[int],
    names: tuple[str, ...],
    learning_rates: Sequence[float],
    folders: dict[str, Path],
) -> list[Variant]:
    """Cells of baselines that run together; PatchTST gets the learning rates that rows get."""
    once = all(name in DETERMINISTIC for name in names)
    label = "baselines" if len(names) > 1 else names[0]
    rates = learning_rates if "patchtst" in names else ()
    variants = []
    for rate in rates or (base.train.learning_rate,):
        keys = (*overrides, _rate_key(rate)) if rates else tuple(overrides)
        config = replace(base, train=replace(base.train, learning_rate=rate))
        place = _place(_hash_of_cell(config, names), folder, label, folders)
        cells = tuple(
            replace(_cell("baselines", config, keys, place, seed), names=names)
            for seed in (seeds[:1] if once else seeds)
        )
        row = Row(name=label, keys=names)
        variants.append(Variant(row=row, learning_rate=rate, cells=cells))
    return variants


def _place(key: str, folder: Path, name: str, folders: dict[str, Path]) -> Path:
    """Folder of the cells of equal settings, whichever row or grid asked for them first."""
    if key not in folders:
        known = sorted((folder / "cells").glob(f"*-{key}"))
        folders[key] = known[0] if known else folder / "cells" / f"{name}-{key}"
    return folders[key]


def _cell(kind: Kind, config: RunConfig, keys: tuple[str, ...], place: Path, seed: int) -> Cell:
    name = f"seed_{seed}"
    where = (f"--runs_dir={place}", f"--name={name}", f"--train.seed={seed}")
    train = replace(config.train, seed=seed)
    return Cell(
        kind=kind,
        config=replace(config, runs_dir=str(place), name=name, train=train),
        arguments=(*keys, *where),
    )
