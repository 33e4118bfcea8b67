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
    read_records,
    rows_of,
    to_markdown,
    write_record,
)
from benchmarks.retrieval_leak import commit
from dist_train.ablation.cells import settings_hash
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


def measure(wanted: Wanted, command: str) -> Record:
    """Train and score one model in a process of its own, or read what it has done before.

    Raises:
        ConfigError: There is no preset, or the run is refused or fails; its own message was shown.
    """
    is_baseline = wanted.model in BASELINES
    file = wanted.config or _preset(wanted.dataset, needed=not is_baseline)
    name = f"accuracy_{wanted.dataset}_{wanted.horizon}_{wanted.model}_{wanted.seed}"
    keys = [
        f"--data.dataset={wanted.dataset}", f"--data.pred_len={wanted.horizon}",
        f"--train.seed={wanted.seed}", f"--name={name}", f"--runs_dir={wanted.runs_dir}",
        *wanted.overrides,
    ]  # fmt: skip
    if wanted.root is not None:
        keys.append(f"--data.root={wanted.root}")
    with tempfile.TemporaryDirectory(prefix="timellm-accuracy-") as folder:
        if file is None:
            file = Path(folder) / "defaults.yaml"
            file.write_text("name: defaults\n", encoding="utf-8")
        config = load_run_config(file, keys)
        result = _run(wanted, config, ["--config", str(file), *keys])
    return _record(config, result, wanted.model, command)


def record_of_run(folder: Path, model: str, command: str) -> Record:
    """Make the record of a training that has finished.

    Raises:
        ConfigError: It has not, or is none.
    """
    result = find_result(folder)
    if result is None:
        raise ConfigError(f"--run {folder}: holds no finished training; name the folder of one.")
    return _record(load_saved_config(folder / "config.yaml"), result, model, command)


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


def _run(wanted: Wanted, config: RunConfig, arguments: list[str]) -> dict[str, Any]:
    if wanted.model in BASELINES:
        names = list(dict.fromkeys(["ridge", wanted.model]))
        command = ["dist_train.baseline_run", "--baselines", *names, *arguments]
    elif wanted.ranks > 1:
        command = ["launch.local", str(wanted.ranks), *arguments, "--resume", "auto"]
    else:
        command = ["dist_train.train", *arguments, "--resume", "auto"]
    path = config.run_folder / RESULT_FILE
    if not path.exists() or wanted.model not in BASELINES:
        done = subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise ConfigError(
                f"--model {wanted.model}: its run ended with code {done.returncode}; its message "
                f"is above, its folder is {config.run_folder}."
            )
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    saved = load_saved_config(config.run_folder / "config.yaml")
    names = [wanted.model] if wanted.model in BASELINES else []
    same = settings_hash(saved, names) == settings_hash(config, names)
    if not same or saved.train.seed != config.train.seed:
        raise ConfigError(
            f"{config.run_folder}: holds a run of other settings; move it away, or give another "
            "--runs_dir."
        )
    return result


def _record(config: RunConfig, result: dict[str, Any], model: str, command: str) -> Record:
    names = [model] if model in BASELINES else []
    if names:
        own = result["rows"][BASELINES[model]]
        scores, ridge_mse = own["scores"], result["rows"]["ridge"]["scores"]["mse"]
    else:
        own, scores, ridge_mse = (
            result,
            result["scores"]["Time-LLM"],
            result["scores"]["ridge"]["mse"],
        )
    return Record(
        dataset=Path(config.data.path).stem if config.data.path else config.data.dataset,
        horizon=config.data.pred_len,
        model=model,
        seed=None if model in DETERMINISTIC else config.train.seed,
        mse=scores["mse"],
        mae=scores["mae"],
        ridge_mse=ridge_mse,
        val_mse=own["val_mse"],
        num_windows=scores["num_windows"],
        seq_len=config.data.seq_len,
        train_s=own["train_s"],
        ranks=result["ranks"],
        config=settings_hash(config, names),
        code=result["code"],
        commit=commit() or "unknown",
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
        command = shlex.join(["python", "-m", "benchmarks.accuracy", *arguments])
        if options.from_runs is not None:
            records = read_records(Path(options.from_runs))
        else:
            records = [_one(options, command)]
    except (ArgumentError, ValueError, OSError) as error:
        return fail(error)
    rows = rows_of(records)
    print(to_markdown(rows))
    print(json.dumps({"rows": [_rounded(asdict(row)) for row in rows]}), flush=True)
    return 0


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
        if (Path(options.out) / _file_of(wanted)).exists():  # before it takes hours
            raise ConfigError(
                f"{Path(options.out) / _file_of(wanted)}: there is a record of this run already; "
                "move it away, or give another --out."
            )
        record = measure(wanted, command)
    path = write_record(record, Path(options.out))
    sys.stderr.write(f"written: {path}\n")
    return record


def _wanted(options: Any, dataset: str, horizon: int, model: str) -> Wanted:
    return Wanted(
        dataset=dataset, horizon=horizon, model=model, seed=options.seed,
        config=None if options.config is None else Path(options.config),
        root=options.data.root, ranks=options.ranks, runs_dir=options.runs_dir,
    )  # fmt: skip


def _file_of(wanted: Wanted) -> str:
    seed = "" if wanted.model in DETERMINISTIC else f"_seed{wanted.seed}"
    return f"{wanted.dataset}_{wanted.horizon}_{wanted.model}{seed}.json"


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


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value
            for key, value in row.items()}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
