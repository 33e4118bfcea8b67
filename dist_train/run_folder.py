"""The folder of a run: refuse a taken one, find a finished one.

As a command it tells a start script what to do, before any launcher starts:

    python -m dist_train.run_folder --config FILE [--section.key value ...]

checks configuration, data and backbone, and prints two lines: ``finished`` and the result line
where the same run has finished before, else the free run name and the run's folder.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train import preflight
from dist_train.config import (
    ConfigError,
    RunConfig,
    build_parser,
    fail,
    parse_run_config,
    world_size_of_environment,
)

RESULT_FILE = "result.json"


def check_is_new(config: RunConfig) -> None:
    """Refuse a run folder that holds something already: nothing is ever overwritten.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be made.
    """
    _check_runs_dir(config)
    folder = config.run_folder
    if folder.is_dir() and any(folder.iterdir()):
        state = "a finished run" if (folder / RESULT_FILE).exists() else "an unfinished run"
        raise ConfigError(
            f"name={config.name}: {folder} already holds {state}. Choose another --name; to run "
            "it again under this name, move the folder away first."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"name={config.name}: {folder} is a file; choose another --name.")


def find_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a finished run; None where the run has not finished."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def result_line(result: dict[str, Any]) -> str:
    """The line a finished training prints last."""
    keys = ("run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks")
    return json.dumps({key: result[key] for key in keys})


def plan_start(config: RunConfig, identity: str) -> tuple[str, str]:
    """Decide what a start script does; see the module docstring for the two values.

    Args:
        config: The run.
        identity: What :func:`dist_train.preflight.identity` says of it.

    Raises:
        ConfigError: No folder can be made in ``runs_dir``.
    """
    _check_runs_dir(config)
    base = config.name
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        folder = Path(config.runs_dir) / name
        result = find_result(folder)
        if result is not None and result.get("identity") == identity:
            return "finished", result_line(result)
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return name, str(folder)
        number += 1


def _check_runs_dir(config: RunConfig) -> None:
    nearest = Path(config.runs_dir).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ConfigError(f"runs_dir={config.runs_dir}: {nearest} is a file; name a folder.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring."""
    try:
        config, _ = parse_run_config(
            build_parser("python -m dist_train.run_folder"), sys.argv[1:] if argv is None else argv
        )
        checked = preflight.check(config)
        ranks = world_size_of_environment()
        plan = plan_start(config, preflight.identity(config, checked, ranks))
    except (ValueError, OSError) as error:
        return fail(error)
    print("\n".join(plan))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
