"""The ``timellm`` command: one function per sub-command, nothing else.

Nothing heavy is imported before a sub-command needs it.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_train import processes
from dist_train.config import fail
from dist_train.launcher import adopt_launcher

USAGE = """usage: timellm COMMAND [options]

Train LLM-based time-series forecasters, score them, and forecast.

commands:
  train      train a run:      timellm train --config configs/quickstart.yaml
  evaluate   score a run:      timellm evaluate --run runs/quickstart --split test
  predict    forecast a file:  timellm predict --run runs/quickstart --data.path FILE --out DIR
  export     a folder to hand on, loaded without the run and its data:
             timellm export --run runs/quickstart --out DIR
  ablate     run a grid of trainings, and tell what exceeds the noise of seeds:
             timellm ablate --config configs/quickstart.yaml --grid modules --seeds 3
  inspect    words near the text prototypes, and which of them patches attend to:
             timellm inspect --run runs/quickstart --split test
  bank       build a memory before a training, or look at one:
             timellm bank build --config FILE --bank.path DIR, timellm bank info --path DIR
  data       build many sets of series into a corpus, which stays on the disk while it is read:
             timellm data build --config FILE --out DIR, timellm data info DIR --verify
  doctor     look at machine, ranks, data and backbone before a job:
             timellm doctor --config configs/quickstart.yaml
  plan       what a run needs, and settings that fit a GPU:
             timellm plan --config FILE --gpu_memory_gib 15

timellm COMMAND --help explains every option of a command.
"""


def train(argv: Sequence[str]) -> int:
    """Train one run; see ``dist_train/train.py``."""
    from dist_train.train import main as train_main

    return train_main(argv)


def evaluate(argv: Sequence[str]) -> int:
    """Score a trained run and the baselines on a split; on any number of ranks."""
    parser = _parser("timellm evaluate", evaluate)
    parser.add_argument("--run", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="What to score.")
    parser.add_argument("--batch_size", type=int, help="Windows per forward pass.")
    parser.add_argument(
        "--save_forecasts", type=Path, help="Parquet file to make of every window's forecast."
    )
    parser.add_argument("--data.root", type=str, help="Folder of the catalog's files.")
    options = _parse(parser, argv)

    from dist_train.scoring import Evaluation, evaluate_run

    root = options.pop("data")["root"]
    result = evaluate_run(Evaluation(**options, root=root))
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0


def predict(argv: Sequence[str]) -> int:
    """Forecast the steps after the newest window of a file.

    Writes forecast.csv and forecast.png, and retrieved.csv where the model has a memory: which
    histories it found. docs/forecasting.md explains them.
    """
    from dist_train.data.config import Missing

    parser = _parser("timellm predict", predict)
    parser.add_argument("--run", type=Path, required=True, help="Folder of a run or an export.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for tables and picture.")
    parser.add_argument("--data.path", type=str, help="CSV or Parquet; default a run's own data.")
    parser.add_argument("--data.missing", type=Missing, help="Of the file; default as trained.")
    parser.add_argument(
        "--data.dates", choices=["strict", "as_is"], help="Of the file; default as trained."
    )
    parser.add_argument("--data.date_column", type=str, help="Of the file; default as trained.")
    parser.add_argument("--data.root", type=str, help="Folder of the catalog's files.")
    parser.add_argument("--horizon", type=int, help="Steps; default all the model was trained for.")
    parser.add_argument(
        "--level", type=float, nargs="+",
        help="Of the intervals, in percent; default those of 80 and 95 that validation supports.",
    )  # fmt: skip
    options = _parse(parser, argv)

    from dist_train.export import open_run
    from dist_train.forecast_files import PredictOptions, predict_file

    path, root = options["data"].pop("path"), options["data"].pop("root")
    reading = {key: value for key, value in options["data"].items() if value is not None}
    run = open_run(options["run"], root, needs_data=path is None)
    wanted = PredictOptions(
        out=options["out"], path=path, reading=reading, horizon=options["horizon"],
        levels=options["level"],
    )  # fmt: skip
    for path in predict_file(run, wanted):
        print(path)
    return 0


def export(argv: Sequence[str]) -> int:
    """Write a finished run as a folder that is loaded without the run, its data and the training.

    With a memory the folder holds the training rows, standardised.
    """
    parser = _parser("timellm export", export)
    parser.add_argument("--run", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--out", type=Path, required=True, help="The new folder.")
    parser.add_argument("--data.root", type=str, help="Folder of the catalog's files.")
    parser.add_argument(
        "--include_backbone", action="store_true",
        help="Copy the kept layers of the language model too.",
    )  # fmt: skip
    options = _parse(parser, argv)

    from dist_train.export import export_run

    root, include = options["data"]["root"], options["include_backbone"]
    print(export_run(options["run"], options["out"], root=root, include_backbone=include))
    return 0


def ablate(argv: Sequence[str]) -> int:
    """Run a grid of trainings; see ``dist_train/ablation/command.py``."""
    from dist_train.ablation.command import main as ablate_main
    from dist_train.stop_signals import EXIT_STOPPED, StopRequestedError

    try:
        return ablate_main(argv)
    except StopRequestedError as error:
        sys.stderr.write(f"stopped: {error}; the same command goes on where it was.\n")
        return EXIT_STOPPED


def inspect(argv: Sequence[str]) -> int:
    """List the words nearest to each text prototype, and which prototypes patches attend to.

    Writes prototypes.csv, patch_attention.csv and inspect.png; docs/inspect.md explains them.
    """
    parser = _parser("timellm inspect", inspect)
    parser.add_argument("--run", type=Path, required=True, help="Folder of the run.")
    parser.add_argument(
        "--split",
        choices=["train", "val", "test"],
        default="test",
        help="Where the windows are taken from.",
    )
    parser.add_argument(
        "--window",
        type=int,
        nargs="+",
        help="Windows whose patches are listed; default oldest, middle, newest.",
    )
    parser.add_argument("--variate", type=str, help="List and draw this column alone.")
    parser.add_argument("--words", type=int, default=8, help="Words per prototype.")
    parser.add_argument("--top", type=int, default=3, help="Prototypes per patch.")
    parser.add_argument("--per_head", action="store_true", help="List patches by head too.")
    parser.add_argument(
        "--max_windows",
        type=int,
        default=256,
        help="Windows, evenly spread, that the prototypes' use is counted over.",
    )
    parser.add_argument("--out", type=Path, help="Folder of the files; default RUN/inspect.")
    parser.add_argument("--data.root", type=str, help="Folder of the catalog's files.")
    options = _parse(parser, argv)

    from dist_train.inspect_command import InspectOptions
    from dist_train.inspect_command import inspect as inspect_run

    root = options.pop("data")["root"]
    print(json.dumps(inspect_run(InspectOptions(**options, root=root))), flush=True)
    return 0


def bank(argv: Sequence[str]) -> int:
    """Build a memory bank, or say what lies in a folder of banks."""
    return _build_or_info("bank", argv, bank_build, bank_info)


def bank_build(argv: Sequence[str]) -> int:
    """Build the memory bank of a configuration or of a trained run; on any number of ranks.

    A configuration with gram.retrieval_key=anchored needs no trained encoder: its bank serves
    every run that names the same bank.path. A learned key needs --run.
    """
    from dist_train.config import build_parser, parse_run_config

    parser = build_parser("timellm bank build")
    parser.description = bank_build.__doc__
    parser.add_argument("--run", type=Path, help="Folder of a trained run, instead of --config.")
    config, further = parse_run_config(parser, argv)

    from dist_train.bank_command import build

    result = build(config, further["run"])
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0


def bank_info(argv: Sequence[str]) -> int:
    """Say what the banks of a folder are: size, chunks, metric, fingerprint, age, recall."""
    parser = _parser("timellm bank info", bank_info)
    parser.add_argument("--path", type=Path, help="Folder of banks, as bank.path names it.")
    parser.add_argument("--run", type=Path, help="Folder of a run, instead of --path.")
    parser.add_argument("--verify", action="store_true", help="Read all files, check checksums.")
    options = _parse(parser, argv)

    from dist_train.bank_command import info

    print(json.dumps(info(options["path"], options["run"], verify=options["verify"])), flush=True)
    return 0


def data(argv: Sequence[str]) -> int:
    """Build a corpus, or say what lies in one."""
    return _build_or_info("data", argv, data_build, data_info)


def data_build(argv: Sequence[str]) -> int:
    """Build every source of data.sources, or the one set, into a folder of its own.

    DIR/sources.yaml names them all: train with --config DIR/sources.yaml, or extend it. What is
    there and was built of the same files with the same settings is left alone.
    """
    from dist_train.config import build_parser, parse_run_config

    parser = build_parser("timellm data build")
    parser.description = data_build.__doc__
    parser.add_argument("--out", type=Path, help="Folder of the corpus.")
    config, further = parse_run_config(parser, argv)
    if further["out"] is None:
        raise ValueError("timellm data build: name the folder of the corpus with --out.")

    from dist_train.data_command import build

    print(json.dumps(build(config, further["out"])), flush=True)
    return 0


def data_info(argv: Sequence[str]) -> int:
    """Say what the sources of a corpus are: series, rows, frequency, time, size, windows."""
    parser = _parser("timellm data info", data_info)
    parser.add_argument("folder", type=Path, help="Folder of a corpus, or of one built source.")
    parser.add_argument("--config", type=Path, help="Count the training windows of this run.")
    parser.add_argument("--verify", action="store_true", help="Read every byte.")
    options = _parse(parser, argv)

    from dist_train.data_info import info

    found = info(options["folder"], options["config"], verify_bytes=options["verify"])
    print(json.dumps(found), flush=True)
    return 2 if found["damaged"] else 0


def doctor(argv: Sequence[str]) -> int:
    """Look at the machine before a job does; see ``launch/doctor/command.py``."""
    from launch.doctor.command import main as doctor_main

    return doctor_main(argv)


def plan(argv: Sequence[str]) -> int:
    """Say what a run needs before it is started; see ``launch/plan.py``."""
    from launch.plan import plan as plan_run

    return plan_run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "inspect": inspect,
    "bank": bank,
    "data": data,
    "ablate": ablate,
    "doctor": doctor,
    "plan": plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code: 0 done, 2 refused, 71 out of memory."""
    processes.begin()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(USAGE, end="", file=sys.stderr)
        return fail(ValueError(f"{arguments[0]}: unknown command, one of {', '.join(COMMANDS)}."))
    try:
        adopt_launcher()
        return command(arguments[1:])
    except Exception as error:
        from dist_train import out_of_memory
        from dist_train.train import is_refusal

        if out_of_memory.is_out_of_memory(error):
            return out_of_memory.report(error, None)
        if isinstance(error, (ValueError, OSError)) or is_refusal(error):
            return fail(error)
        raise


def _build_or_info(
    name: str,
    argv: Sequence[str],
    build: Callable[[Sequence[str]], int],
    info: Callable[[Sequence[str]], int],
) -> int:
    actions = {"build": build, "info": info}
    if not argv or argv[0] not in actions:
        given = argv[0] if argv else "nothing"
        raise ValueError(f"timellm {name} {given}: say build or info; each explains its --help.")
    return actions[argv[0]](argv[1:])


def _parser(prog: str, command: Callable[..., object]) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=prog, exit_on_error=False, allow_abbrev=False, description=command.__doc__
    )


def _parse(parser: Any, argv: Sequence[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    try:
        values: dict[str, Any] = parser.parse_args(list(argv)).as_dict()
    except ArgumentError as error:
        text = re.sub(r"required: (\w+)", r"required: --\1", str(error))
        raise ValueError(f"{text}; see {parser.prog} --help.") from error
    return values


if __name__ == "__main__":
    raise SystemExit(main())
