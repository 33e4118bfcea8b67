"""``timellm ablate``: run a grid, each cell once, and tell what exceeds the noise of seeds."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dist_train import preflight
from dist_train.ablation.cells import Cell, Plan, lines_of, make_plan
from dist_train.ablation.grid import read_grid
from dist_train.ablation.running import Limits, run_cells
from dist_train.ablation.table import Table, make_table, to_csv, to_markdown
from dist_train.baseline_names import BASELINES, DEFAULT_GROUPS
from dist_train.config import ConfigError, build_parser, parse_run_config
from dist_train.data.windows import ForecastData
from memory_index.atomic_file import write_text


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """What the command takes beside a configuration."""

    grid: str = "modules"
    seeds: int = 3
    learning_rates: Sequence[float] = ()
    baselines: Sequence[str] = tuple(name for group in DEFAULT_GROUPS for name in group)
    ranks: int = 1
    jobs: int = 1
    only: int | None = None
    table: bool = False
    lines: str | None = None


def main(argv: Sequence[str]) -> int:
    """Read the command line and run the grid; returns the exit code.

    Raises:
        ConfigError: As :func:`ablate`, or the command line is refused.
    """
    parser = build_parser("timellm ablate")
    parser.description = (
        "Run a grid of trainings over several seeds, each once; write a table with the spread and "
        "what exceeds it, a CSV and a picture. The same command goes on where it was."
    )
    _add_options(parser)
    _, values = parse_run_config(parser, argv)
    files, overrides = split_config(_of_configuration(argv))
    if len(files) != 1:
        raise ConfigError(f"timellm ablate: give one --config FILE, got {len(files)}.")
    options = AblateOptions(**{item.name: values[item.name] for item in fields(AblateOptions)})
    return ablate(files[0], overrides, options)


def _add_options(parser: Any) -> None:
    explained: dict[str, tuple[str, dict[str, Any]]] = {
        "grid": (
            "A name (configs/ablation/NAME.grid), or a file with a line of keys for each row.",
            {"type": str},
        ),
        "seeds": ("Seeds of each row, counted up from train.seed.", {"type": int}),
        "learning_rates": (
            "Peaks tried for every row; the one that validation prefers is reported.",
            {"type": float, "nargs": "+"},
        ),
        "baselines": (
            f"Scored on the same windows: {', '.join(BASELINES)}; or none.",
            {"type": str, "nargs": "+"},
        ),
        "ranks": ("Ranks of each training, on this machine.", {"type": int}),
        "jobs": ("Cells that run at once.", {"type": int}),
        "only": (
            "Run this training alone, counted from 1 as --lines writes them; no table.",
            {"type": int},
        ),
        "table": ("Run nothing: write the table of what there is.", {"action": "store_true"}),
        "lines": (
            "Run nothing: write a line for each training, for launch/slurm_array.sbatch.",
            {"type": str},
        ),
    }
    for name, (text, kind) in explained.items():
        default = getattr(AblateOptions(), name)
        default = list(default) if "nargs" in kind else default
        parser.add_argument(f"--{name}", help=text, default=default, **kind)


def _of_configuration(argv: Sequence[str]) -> list[str]:
    """The arguments of the configuration, without those of this command."""
    own = {item.name for item in fields(AblateOptions)}
    kept: list[str] = []
    is_own = False
    for word in argv:
        if word.startswith("--"):
            is_own = word[2:].partition("=")[0] in own
        if not is_own:
            kept.append(word)
    return kept


def split_config(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the command line of a configuration.

    Returns:
        The files that ``--config`` names, and the overrides: all other words, in their order.
    """
    files: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for word in rest:
        option, equals, name = word.partition("=")
        if option == "--config":
            files.append(name if equals else next(rest, ""))
        else:
            overrides.append(word)
    return files, overrides


def ablate(config_file: str, overrides: Sequence[str], options: AblateOptions) -> int:
    """Do what the command line asks; returns the exit code: 0, or 1 where a cell failed.

    Args:
        config_file: What ``--config`` names.
        overrides: The rest of the configuration's command line.
        options: What the command takes beside it.

    Raises:
        ConfigError: A row, an option or a folder is refused.
        DataError: The series cannot be used.
        StopRequestedError: A signal asked to stop; the runs have saved.
    """
    _check(options)
    plan = make_plan(
        config_file,
        overrides,
        read_grid(options.grid),
        num_seeds=options.seeds,
        learning_rates=options.learning_rates,
        baselines=_groups(options.baselines),
    )
    _say(
        f"{plan.folder}: {len(plan.grid.rows)} rows of {plan.grid.name}, {len(plan.seeds)} seeds: "
        f"{len(plan.trainings)} trainings"
    )
    if options.lines is not None:
        return _write_lines(plan, Path(options.lines), config_file)
    if not options.table:
        cells = _cells_to_run(plan, options)
        _check_cells(cells, options.ranks)
        run_cells(cells, config_file, Limits(ranks=options.ranks, jobs=options.jobs), _say)
        if options.only is not None:
            return 1 if cells[0].failure.exists() else 0
    table = make_table(plan)
    _write(table)
    print(json.dumps(_summary(table)), flush=True)
    return 1 if table.num_failed else 0


def _check(options: AblateOptions) -> None:
    for name in ("seeds", "ranks", "jobs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(options, name)}.")
    asked = [
        name
        for name, given in (
            ("--only", options.only is not None),
            ("--table", options.table),
            ("--lines", options.lines is not None),
        )
        if given
    ]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)}: each asks for something else; give one of them.")
    rates = options.learning_rates
    if any(not rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(
            f"--learning_rates {' '.join(map(str, rates))}: must be positive, and none twice."
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        raise ConfigError(
            f"timellm ablate was started as one of {world_size} ranks (WORLD_SIZE): start it once, "
            "and say --ranks; each cell gets that many."
        )


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Part the baselines asked for into those that run together."""
    if list(names) == ["none"]:
        return []
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise ConfigError(
            f"--baselines {' '.join(unknown) or 'nothing'}: give some of {', '.join(BASELINES)}; "
            "or none."
        )
    groups = [*DEFAULT_GROUPS, ("patchtst",)]
    parts = [tuple(name for name in group if name in names) for group in groups]
    return [part for part in parts if part]


def _cells_to_run(plan: Plan, options: AblateOptions) -> list[Cell]:
    trainings = plan.trainings
    if options.only is None:
        return [*(cell for variant in plan.baselines for cell in variant.cells), *trainings]
    if not 1 <= options.only <= len(trainings):
        raise ConfigError(
            f"--only {options.only}: the grid {plan.grid.name} has {len(trainings)} trainings with "
            f"{len(plan.seeds)} seeds: give 1 to {len(trainings)}."
        )
    return [trainings[options.only - 1]]


def _check_cells(cells: Sequence[Cell], ranks: int) -> None:
    """Refuse now what a run would refuse later, after others have taken hours."""
    known: dict[str, ForecastData] = {}
    checked = set()
    for cell in cells:
        config = replace(cell.config, name="cell", train=replace(cell.config.train, seed=0))
        if cell.folder.exists() and not cell.folder.is_dir():
            raise ConfigError(f"{cell.folder}: is a file; move it away.")
        if repr(config) in checked:
            continue
        checked.add(repr(config))
        data = known.get(repr(config.data))
        try:
            own = ranks if cell.kind == "training" else 1
            known[repr(config.data)] = preflight.check(config, ranks=own, data=data).data
        except ValueError as error:
            raise type(error)(f"{cell.folder.parent.name}: {error}") from error


def _write_lines(plan: Plan, path: Path, config_file: str) -> int:
    if path.exists():
        raise ConfigError(f"--lines {path}: exists already; name another file.")
    write_text(path, lines_of(plan))
    _say(
        f"{path}: {len(plan.trainings)} lines. Run them as an array, then this command without "
        f"--lines:\n  sbatch --array=1-{len(plan.trainings)} launch/slurm_array.sbatch "
        f"{config_file} {path}"
    )
    return 0


def _write(table: Table) -> None:
    from dist_train.ablation.figure import save_ablation_figure

    folder = table.plan.output
    folder.mkdir(parents=True, exist_ok=True)
    markdown = to_markdown(table)
    write_text(folder / "ablation.md", markdown)
    write_text(folder / "ablation.csv", to_csv(table))
    save_ablation_figure(folder / "ablation.png", table)
    print(markdown, flush=True)


def _summary(table: Table) -> dict[str, Any]:
    rows = [
        {
            "row": row.name,
            "seeds": len(row.measured),
            "deterministic": row.deterministic,
            "mse_mean": round(row.mse[0], 6) if row.measured else None,
            "mse_std": None if not row.measured or row.mse[1] is None else round(row.mse[1], 6),
            "mae_mean": round(row.mae[0], 6) if row.measured else None,
            "val_mse": round(row.val_mse, 6) if row.measured else None,
            "beyond_seed_noise": None if difference is None else difference.beyond_seed_noise,
        }
        for row in (*table.rows, *table.baselines)
        for difference in [table.differences[row.name]]
    ]
    return {
        "ablation": str(table.plan.output),
        "grid": table.plan.grid.name,
        "rows": rows,
        "failed": table.num_failed,
        "not_run": table.num_missing,
        "best_on_validation": None if table.best is None else table.best.name,
    }


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
