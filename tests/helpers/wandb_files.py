"""What a run has left for wandb, read by wandb's own reader (``wandb leet inspect``)."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def files(run: Path) -> list[Path]:
    """The transaction logs of a run, one for each start, oldest first."""
    return sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)


def records(file: Path) -> list[Record]:
    """All records of a transaction log."""
    spec = find_spec("wandb")
    assert spec is not None
    assert spec.origin is not None
    core = Path(spec.origin).parent / "bin/wandb-core"
    done = subprocess.run(
        [core, "leet", "inspect", "--no-observability", "--json", "--run-file", file],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_kind(found: list[Record], kind: str) -> list[Any]:
    """What the records of one kind hold, in order."""
    return [record[kind] for record in found if record["type"] == kind]


def rows(found: list[Record]) -> list[dict[str, Any]]:
    """The rows that were logged, without what wandb adds to each; media as dictionaries."""
    made = []
    for one in of_kind(found, "history"):
        row: dict[str, Any] = {}
        for key, value in one["item"].items():
            name, _, inner = key.partition(".")
            if inner:
                row.setdefault(name, {})[inner] = value
            elif not key.startswith("_"):
                row[key] = value
        made.append(row)
    return made


def config_of(found: list[Record]) -> dict[str, Any]:
    """The configuration that the run began with."""
    config: dict[str, Any] = of_kind(found, "run")[0]["config"]["update"]
    return config


def exit_code(found: list[Record]) -> int | None:
    """How the run ended; None: it says nothing of that."""
    ends = of_kind(found, "exit")
    return int(ends[-1].get("exit_code", 0)) if ends else None
