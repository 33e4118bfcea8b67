"""Score a trained run again: the ``evaluate`` command."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from dist_train import baselines, distributed, report, watchdog
from dist_train.comparison import score_beside_baselines
from dist_train.config import TrainConfig
from dist_train.loading import load_run, load_training_data


def evaluate_run(
    folder: Path, split: str, batch_size: int | None, root: str | None
) -> dict[str, Any] | None:
    """Score a run's best checkpoint and the baselines on all windows of a split; collective.

    Args:
        folder: Folder of the run.
        split: val or test.
        batch_size: Windows per forward pass; default the run's ``train.eval_batch_size``.
        root: Folder of the catalog's files; default the run's ``data.root``.

    Returns:
        Scores by forecaster on rank 0, None on the others.

    Raises:
        CheckpointError: The run has no usable checkpoint.
        DataError: The data is missing, or is not what the run was trained on.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {batch_size}.")
    defaults = TrainConfig()
    distributed.initialize_process_group(defaults.collective_timeout_s)
    try:
        with watchdog.watch(defaults.watchdog_s):
            run = load_run(folder, root)
            data = load_training_data(run.config, run.series)
            batch_size = batch_size or run.config.train.eval_batch_size
            scores = score_beside_baselines(
                partial(run.forecast, split=split), run.config, data, split,
                module=run.module, retriever=run.retriever, prompt_builder=run.prompt_builder,
                ridge=baselines.fit_ridge(data), batch_size=batch_size,
            )  # fmt: skip
        if not distributed.is_main_rank():
            return None
        print(report.table(scores), flush=True)
        rows = {name: dataclasses.asdict(row) for name, row in scores.items()}
        return {"run": folder.name, "split": split, "scores": rows}
    finally:
        distributed.shut_down()
