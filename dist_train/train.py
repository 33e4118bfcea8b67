"""Entry of one training rank: check, build, train, score, report.

    timellm train --config FILE                                    one process
    deepspeed --module dist_train.train --config FILE              every rank of this machine
    torchrun --nproc_per_node 2 -m dist_train.train --config FILE  the same
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dist_train import preflight, run_folder
from dist_train.atomic_file import write_text
from dist_train.config import (
    RunConfig,
    build_parser,
    config_to_yaml,
    fail,
    parse_run_config,
)
from dist_train.reproducibility import code_fingerprint, environment

if TYPE_CHECKING:
    from dist_train.metrics import Scores

_STARTED = time.time()


def run_training(config: RunConfig) -> dict[str, Any]:
    """Check a run, join the ranks that the launcher started, train and score; collective.

    Returns:
        What ``result.json`` holds, on every rank.

    Raises:
        ValueError: The configuration, the data, the backbone or the run folder is refused.
        FloatingPointError: The loss is not finite.
    """
    run_folder.check_is_new(config)
    checked = preflight.check(config)

    from dist_train import distributed

    distributed.initialize_process_group(config.train.timeout_s)
    try:
        return train_and_score(config, checked)
    finally:
        distributed.shut_down()


def train_and_score(config: RunConfig, checked: preflight.Preflight) -> dict[str, Any]:
    """Train and score what has been checked, on the ranks of the process group; collective.

    Returns:
        What ``result.json`` holds, on every rank.
    """
    from dist_train import distributed

    with distributed.agree_or_raise("Creating the run folder"):
        if distributed.is_main_rank():
            _create_folder(config)
    return _train_and_score(config, checked)


def _create_folder(config: RunConfig) -> None:
    config.run_folder.mkdir(parents=True, exist_ok=True)
    write_text(config.run_folder / "config.yaml", config_to_yaml(config))
    write_text(config.run_folder / "environment.json", json.dumps(environment(), indent=2))


def _train_and_score(config: RunConfig, checked: preflight.Preflight) -> dict[str, Any]:
    from dist_train import baselines, distributed, engine, precision, report
    from dist_train.build import build_forecaster, build_prompt_builder
    from dist_train.data.sampler import GlobalBatchSampler
    from dist_train.evaluation import finish_scores, score_split
    from dist_train.tracking import Tracker
    from dist_train.trainer import Trainer
    from model.backbone_files import fingerprint

    data, files = checked.data, checked.backbone_files
    folder, main = config.run_folder, distributed.is_main_rank()
    dtype = precision.resolve_dtype(config.train.precision)
    settings = engine.deepspeed_json(config, distributed.world_size(), dtype)
    if main:
        write_text(folder / "deepspeed.json", json.dumps(settings, indent=2))
        print(report.opening(config, data, distributed.world_size(), dtype), flush=True)

    prompt_builder = build_prompt_builder(config, files, data.series_set.description)
    ridge = baselines.fit_ridge(data)
    model = build_forecaster(config, files, dtype)
    if model.anchor is not None:
        model.anchor.set_solution(ridge.weight, ridge.norm)
    if main:
        print(report.parameters(model, ridge), flush=True)
    sampler = GlobalBatchSampler(
        len(data.windows["train"]),
        config.train.batch_size,
        settings["train_micro_batch_size_per_gpu"],
        distributed.rank(),
        distributed.world_size(),
        config.train.seed,
    )
    total_steps = sampler.steps_per_epoch * config.train.max_epochs
    total_steps = min(total_steps, config.train.max_steps or total_steps)
    ds_engine = engine.initialize(model, config, settings, total_steps)
    facts = {
        "dtype": precision.dtype_name(dtype),
        "backbone": {"name": config.backbone.name, "fingerprint": fingerprint(files)},
    }
    with Tracker(folder, enabled=main) as tracker:
        trainer = Trainer(
            config, ds_engine, data, sampler, prompt_builder, tracker,
            total_steps=total_steps, facts=facts,
        )  # fmt: skip
        fit = trainer.fit()
        ds_engine.load_trained_parameters(trainer.best_state)

        score_args: dict[str, Any] = {
            "batch_size": config.train.eval_batch_size,
            "num_workers": config.data.num_workers,
        }
        sums = score_split(
            {"Time-LLM": trainer.forecast}, data, "test",
            prompt_builder=prompt_builder, **score_args,
        )  # fmt: skip
        sums |= score_split(baselines.all_baselines(data, ridge, config.train.seed), data, "test",
                            **score_args)  # fmt: skip
        scores = finish_scores(sums, data)
        tracker.log(fit.steps, {f"test/mse/{name}": row.mse for name, row in scores.items()})

    result = _result(config, fit, ridge, scores, distributed.world_size())
    figure = report.collect_example(trainer.forecast, ridge, data, prompt_builder)
    ds_engine.close()
    with distributed.agree_or_raise("Writing the report"):
        if main:
            report.write(folder, config, data, result, scores, figure)
            write_text(folder / run_folder.RESULT_FILE, json.dumps(result, indent=2))
            print(report.table(scores), flush=True)
    return result


def _result(
    config: RunConfig, fit: Any, ridge: Any, scores: "dict[str, Scores]", world_size: int
) -> dict[str, Any]:
    started = float(os.environ.get("TIMELLM_STARTED_AT", _STARTED))
    return {
        "run": config.name,
        "test_mse": round(scores["Time-LLM"].mse, 6),
        "ridge_mse": round(scores["ridge"].mse, 6),
        "train_s": round(fit.train_s, 1),
        "total_s": round(time.time() - started, 1),
        "ranks": world_size,
        "best_step": fit.best_step,
        "steps": fit.steps,
        "val_mse": fit.best_val_mse,
        "ridge_val_mse": ridge.validation_mse,
        "windows_per_s": round(fit.windows_per_s, 2),
        "peak_rss_gib": round(fit.peak_rss_gib, 3),
        "code": code_fingerprint(),
        "scores": {name: asdict(row) for name, row in scores.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code."""
    parser = build_parser("timellm train")
    parser.add_argument("--local_rank", type=int, help="Given by the deepspeed launcher.")
    try:
        config, _ = parse_run_config(parser, sys.argv[1:] if argv is None else argv)
        result = run_training(config)
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    if int(os.environ.get("RANK", "0")) == 0:
        print(run_folder.result_line(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
