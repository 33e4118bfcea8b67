"""How good the forecasts are: data set x horizon x model, mean and spread over seeds.

    python -m benchmarks.accuracy --from-runs [DIR]      the table of what benchmarks/results holds
    python -m benchmarks.accuracy --dataset ETTh1 --horizon 96 --model best --seed 2021   one record
    python -m benchmarks.accuracy --run runs/NAME --model NAME     the record of a finished run
    python -m benchmarks.accuracy --quick       the ridge on the embedded series, no record is kept

``best`` is our tuned preset, configs/best_<dataset>.yaml; --config names any other. The baselines
(ridge, ridge_retrieval, retrieval, dlinear, patchtst, seasonal_naive, repeat_last) take data, bank
and budget from there, where it exists. Every test window is scored once; models are chosen on
validation alone. Data sets are looked for in --data.root, else in TIMELLM_DATA_ROOT. A run that was
stopped is gone on with by the same command. The last line is JSON: ``rows``.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from benchmarks.accuracy_records import (
    BEST,
    RESULTS,
    Record,
    check_new,
    read_records,
    record_name,
    rows_of,
    to_markdown,
    write_record,
)
from benchmarks.retrieval_leak import commit
from benchmarks.rounding import decimals
from dist_train.ablation.cells import Cell, settings_hash
from dist_train.ablation.results import MODEL, facts_of, is_finished
from dist_train.ablation.running import command_of
from dist_train.baseline_names import BASELINES, DETERMINISTIC
from dist_train.config import ConfigError, RunConfig, fail, load_run_config, load_saved_config
from dist_train.run_folder import RESULT_FILE, find_result

ROOT = Path(__file__).parents[1]
DEFAULT_SEED = 2021


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One record to be made."""

    dataset: str
    horizon: int
    model: str
    seed: int
    config: Path | None
    """None: the preset of the data set, or for a baseline the defaults where there is none."""

    root: str | None
    ranks: int
    runs_dir: str
    overrides: tuple[str, ...] = ()


def measure(wanted: Wanted, command: str, out: Path | None = None) -> Record:
    """Train and score one model in a process of its own, or read what it has done before.

    Args:
        wanted: The record.
        command: What makes it again.
        out: Folder where it must not be yet; None: it is not kept.

    Raises:
        ConfigError: There is no preset, or the record is there already, or the run is refused or
            fails; its own message was shown.
    """
    file = wanted.config or _preset(wanted.dataset, needed=wanted.model not in BASELINES)
    at = commit()  # asked first: a checkout may move while the run goes on
    with tempfile.TemporaryDirectory(prefix="timellm-accuracy-") as folder:
        if file is None:
            file = Path(folder) / "defaults.yaml"
            file.write_text("name: defaults\n", encoding="utf-8")
        cell = _cell_of(wanted, file)
        if out is not None:  # before it takes hours
            check_new(out / record_name(*_identity(cell.config, wanted.model)))
        _run(wanted, cell, file)
    result: dict[str, Any] = json.loads((cell.folder / RESULT_FILE).read_text(encoding="utf-8"))
    return _record(cell.config, result, wanted.model, command, at)


def record_of_run(folder: Path, model: str, command: str) -> Record:
    """Make the record of a training that has finished.

    Raises:
        ConfigError: It has not, or is none.
    """
    result = find_result(folder)
    if result is None:
        raise ConfigError(f"--run {folder}: holds no finished training; name the folder of one.")
    return _record(load_saved_config(folder / "config.yaml"), result, model, command, commit())


def _preset(dataset: str, *, needed: bool) -> Path | None:
    path = ROOT / "configs" / f"best_{dataset}.yaml"
    if path.exists():
        return path
    if needed:
        raise ConfigError(
            f"--model {BEST}: there is no tuned preset for {dataset} (configs/{path.name}); give "
            f"--config FILE, or one of {', '.join(BASELINES)}."
        )
    return None


def _cell_of(wanted: Wanted, file: Path) -> Cell:
    """The run that a record is made of; the ridge stands beside every baseline."""
    is_baseline = wanted.model in BASELINES
    name = f"accuracy_{wanted.dataset}_{wanted.horizon}_{wanted.model}_{wanted.seed}"
    keys = [
        f"--data.dataset={wanted.dataset}", f"--data.pred_len={wanted.horizon}",
        f"--train.seed={wanted.seed}", f"--name={name}", f"--runs_dir={wanted.runs_dir}",
        *wanted.overrides,
    ]  # fmt: skip
    if wanted.root is not None:
        keys.append(f"--data.root={wanted.root}")
    return Cell(
        kind="baselines" if is_baseline else "training",
        config=load_run_config(file, keys),
        arguments=tuple(keys),
        names=tuple(dict.fromkeys(["ridge", wanted.model])) if is_baseline else (),
    )


def _run(wanted: Wanted, cell: Cell, file: Path) -> None:
    if is_finished(cell):
        return
    command = command_of(cell, str(file), wanted.ranks)
    # Standard error by its number: sys.stderr need not be a file.
    done = subprocess.run(command, stdout=2, check=False)
    if done.returncode != 0 or not is_finished(cell):
        raise ConfigError(
            f"--model {wanted.model}: its run ended with code {done.returncode}; its message is "
            f"above, its folder is {cell.folder}."
        )


def _identity(config: RunConfig, model: str) -> tuple[str, int, str, int | None]:
    """Data set, horizon, model and seed: what tells one record from another."""
    dataset = Path(config.data.path).stem if config.data.path else config.data.dataset
    seed = None if model in DETERMINISTIC else config.train.seed
    return dataset, config.data.pred_len, model, seed


def _record(
    config: RunConfig, result: dict[str, Any], model: str, command: str, at: str | None
) -> Record:
    names = [model] if model in BASELINES else []
    own, scores = facts_of(result, BASELINES.get(model, MODEL))
    ridge = facts_of(result, BASELINES["ridge"])[1] if names else result["scores"]["ridge"]
    dataset, horizon, _, seed = _identity(config, model)
    return Record(
        dataset=dataset,
        horizon=horizon,
        model=model,
        seed=seed,
        mse=scores["mse"],
        mae=scores["mae"],
        ridge_mse=ridge["mse"],
        val_mse=own["val_mse"],
        num_windows=scores["num_windows"],
        seq_len=config.data.seq_len,
        train_s=own["train_s"],
        ranks=result["ranks"],
        config=settings_hash(config, names),
        code=result["code"],
        commit=at or "unknown",
        hardware=hardware(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command,
    )


def hardware() -> str:
    """Name this machine by its cores and GPUs."""
    gpus = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = file.read_text(encoding="utf-8").splitlines()
        gpus += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return ", ".join([*(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus))), cores])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(_with_default_folder(arguments))
        if options.from_runs is not None:
            records = read_records(Path(options.from_runs))
        else:
            records = [_one(options, command_from(options))]
    except (ArgumentError, ValueError, OSError) as error:
        return fail(error)
    rows = rows_of(records)
    print(to_markdown(rows))
    print(json.dumps({"rows": decimals([asdict(row) for row in rows], 6)}), flush=True)
    return 0


def command_from(options: Any) -> str:
    """What makes a record again, as it says; where files lie is each machine's own affair."""
    keys = ["dataset", "horizon", "model", "config", "seed", "ranks"]
    if options.run is not None:
        keys = ["run", "model"]
    given = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    return shlex.join([
        *("python", "-m", "benchmarks.accuracy"),
        *(part for key, value in given.items() for part in (f"--{key}", str(value))),
    ])  # fmt: skip


def _one(options: Any, command: str) -> Record:
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="timellm-accuracy-") as folder:
            model = options.model or "ridge"
            wanted = replace(_wanted(options, "vic_elec", 24, model), runs_dir=folder)
            return measure(replace(wanted, overrides=("--data.seq_len=96",)), command)
    if options.model is None:
        raise ConfigError(f"--model is missing: give {BEST}, or one of {', '.join(BASELINES)}.")
    if options.run is not None:
        record = record_of_run(Path(options.run), options.model, command)
    else:
        if options.dataset is None or options.horizon is None:
            raise ConfigError("--dataset and --horizon are missing; --from-runs prints the table.")
        known = options.model in BASELINES or options.model == BEST or options.config is not None
        if not known:
            raise ConfigError(
                f"--model {options.model}: is none of {', '.join([BEST, *BASELINES])}; give its "
                "--config FILE."
            )
        wanted = _wanted(options, options.dataset, options.horizon, options.model)
        record = measure(wanted, command, Path(options.out))
    path = write_record(record, Path(options.out))
    sys.stderr.write(f"written: {path}\n")
    return record


def _wanted(options: Any, dataset: str, horizon: int, model: str) -> Wanted:
    return Wanted(
        dataset=dataset, horizon=horizon, model=model, seed=options.seed,
        config=None if options.config is None else Path(options.config),
        root=options.data.root, ranks=options.ranks, runs_dir=options.runs_dir,
    )  # fmt: skip


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks.accuracy", exit_on_error=False,
        description="Accuracy by data set, horizon and model, over seeds.",
    )  # fmt: skip
    add = parser.add_argument
    add("--from-runs", type=str, help="Print the table of the records in this folder.")
    add("--dataset", type=str, help="A name of the catalog.")
    add("--horizon", type=int, help="Steps that are forecast.")
    add("--model", type=str, help=f"{BEST}, or a baseline: {', '.join(BASELINES)}.")
    add("--seed", type=int, default=DEFAULT_SEED, help="Of weights, order and dropout.")
    add("--config", type=str, help="Configuration instead of the data set's preset.")
    add("--run", type=str, help="Make the record of this finished run.")
    add("--ranks", type=int, default=1, help="Ranks of a training.")
    add("--data.root", type=str, help="Folder of the catalog's files.")
    add("--runs_dir", type=str, default="runs", help="Folder of the runs.")
    add("--out", type=str, default=str(RESULTS), help="Folder of the records.")
    add("--quick", action="store_true", help="Small and embedded; keeps no record.")
    return parser


def _with_default_folder(arguments: list[str]) -> list[str]:
    """``--from-runs`` alone means the committed records."""
    if "--from-runs" in arguments:
        place = arguments.index("--from-runs") + 1
        if place == len(arguments) or arguments[place].startswith("--"):
            return [*arguments[:place], str(RESULTS), *arguments[place:]]
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
