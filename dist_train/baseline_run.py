"""Train and score baselines in a run of their own, on the windows of a configuration.

    python -m dist_train.baseline_run --baselines ridge dlinear --config FILE [--section.key value]

One process. The folder gets ``result.json``, ``config.yaml`` and the error of every test window.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from dist_train import baselines, distributed, patchtst, processes, progress, run_folder, watchdog
from dist_train.baseline_names import BASELINES, DETERMINISTIC
from dist_train.config import (
    ConfigError,
    RunConfig,
    build_parser,
    config_to_yaml,
    fail,
    parse_run_config,
)
from dist_train.data.clock import check_clocks
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.evaluation import Forecast, finish_scores, score_split, selection_mse
from dist_train.memory_build import bank_root
from dist_train.node_stats import peak_device_gib, peak_rss_gib
from dist_train.reproducibility import code_fingerprint
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import anchor_forecast, judge_retrieval
from dist_train.window_errors import WindowErrors
from memory_index.atomic_file import write_text
from model.anchor_fit import anchor_of

ForSplit = Callable[[str], Forecast]
"""Makes the forecaster of a split; those that retrieve need to know which."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A baseline, ready to forecast."""

    forecast: ForSplit
    train_s: float
    trained_parameters: int


def run_baselines(config: RunConfig, names: Sequence[str]) -> dict[str, Any]:
    """Fit baselines, and score them on validation and on every test window.

    Args:
        config: Data, memory, budget and seed.
        names: Of :data:`dist_train.baseline_names.BASELINES`.

    Returns:
        What ``result.json`` holds.

    Raises:
        ConfigError: The folder holds something else.
        DataError: The series cannot be used.
    """
    code = code_fingerprint()  # asked first: a checkout may change while this runs
    data = load_forecast_data(config.data)
    folder = config.run_folder
    with run_folder.locked(folder), ExitStack() as held:
        write_text(folder / "config.yaml", config_to_yaml(config))
        fitted = _fit_all(config, data, names, held)
        score = partial(score_split, data=data, batch_size=config.train.eval_batch_size)
        chosen = {BASELINES[name]: one for name, one in fitted.items()}
        selection = score(
            {name: one.forecast("val_selection") for name, one in chosen.items()},
            split="val_selection",
        )
        errors = WindowErrors(data.windows["test"])
        began = time.monotonic()
        test = score(
            errors.watch({name: one.forecast("test") for name, one in chosen.items()}), split="test"
        )
        seconds = time.monotonic() - began
        scores = finish_scores(test, data)
        rows = {
            name: {
                "val_mse": selection_mse(selection[name], data),
                "train_s": round(one.train_s, 1),
                "trained_parameters": one.trained_parameters,
                "scores": asdict(scores[name]),
            }
            for name, one in chosen.items()
        }
        result = {
            "rows": rows,
            "deterministic": all(name in DETERMINISTIC for name in names),
            "scoring_s": round(seconds, 1),
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_device_gib": peak_device_gib(),
            "ranks": 1,
            "code": code,
            "data": data.series_set.checksum,
        }
        errors.write(folder / run_folder.ERRORS_FILE)
        write_text(folder / run_folder.RESULT_FILE, json.dumps(result, indent=2))
    return result


def _fit_all(
    config: RunConfig, data: ForecastData, names: Sequence[str], held: ExitStack
) -> dict[str, Fitted]:
    fitted: dict[str, Fitted] = {}
    retrieving = {"ridge_retrieval", "retrieval"} & set(names)
    if retrieving:
        check_clocks(data.sources)
        fitted |= _fit_retrieving(config, data, held)
    for name in set(names) - retrieving:
        progress.enter(name)
        began = time.monotonic()
        forecast, size = _fit(name, config, data)
        fitted[name] = Fitted(
            forecast=lambda split, forecast=forecast: forecast,  # type: ignore[misc]
            train_s=time.monotonic() - began,
            trained_parameters=size,
        )
    return {name: fitted[name] for name in names}


def _fit(name: str, config: RunConfig, data: ForecastData) -> tuple[Forecast, int]:
    seq_len, pred_len = config.data.seq_len, config.data.pred_len
    if name == "ridge":
        ridges = baselines.own_ridges(*baselines.fit_ridges(data))
        return baselines.ridge_forecast(*ridges), len(ridges) * seq_len * pred_len
    if name == "dlinear":
        return baselines.fit_dlinear(data, config.train.seed), 2 * (seq_len + 1) * pred_len
    if name == "patchtst":
        forecast, module = patchtst.fit_patchtst(data, config)
        trained = (one for one in module.parameters() if one.requires_grad)
        return forecast, sum(one.numel() for one in trained)
    if name == "seasonal_naive":
        return baselines.seasonal_naive(*data.seasonal_periods), 0
    assert name == "repeat_last"
    return baselines.repeat_last, 0


def _fit_retrieving(config: RunConfig, data: ForecastData, held: ExitStack) -> dict[str, Fitted]:
    """Fit what reads the memory, by its anchored key, which no training moves."""
    began = time.monotonic()
    gram = replace(config.gram, use_gram=True, retrieval_key="anchored", neighbours="nearest")
    root = bank_root(config.run_folder)
    fits = judge_retrieval(data, gram, config.bank, config.model.anchor_rows, root).reading
    anchor = anchor_of(*fits, seq_len=config.data.seq_len, reads_future=True)
    anchor.to(distributed.device())
    retriever = Retriever(data, gram, config.bank, root)
    held.callback(retriever.close)
    retriever.refresh({})
    found: list[tuple[WindowBatch, Tensor]] = []

    def retrieved(batch: WindowBatch, split: str) -> Tensor:
        """Search once for both forecasters, which see the same batch one after the other."""
        if not found or found[0][0] is not batch:
            found[:] = [(batch, retriever.forecast(batch, split))]
        return found[0][1]

    def alone(split: str) -> Forecast:
        return lambda batch: retrieved(batch, split).to(batch.target.device)

    seconds = time.monotonic() - began
    return {
        "ridge_retrieval": Fitted(
            forecast=lambda split: anchor_forecast(anchor, retrieved, split),
            train_s=seconds,
            trained_parameters=anchor.weight.numel(),
        ),
        "retrieval": Fitted(forecast=alone, train_s=seconds, trained_parameters=0),
    }


def check_names(names: Sequence[str]) -> None:
    """Refuse a baseline that there is not.

    Raises:
        ConfigError: It is unknown.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise ConfigError(
            f"--baselines {' '.join(unknown) or 'nothing'}: give one or more of "
            f"{', '.join(BASELINES)}."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code."""
    processes.begin()
    parser = build_parser("python -m dist_train.baseline_run")
    parser.add_argument("--baselines", nargs="+", type=str, default=[], help="Which of them.")
    try:
        config, further = parse_run_config(parser, sys.argv[1:] if argv is None else argv)
        check_names(further["baselines"])
        distributed.initialize_process_group(config.train.collective_timeout_s)
        try:
            with watchdog.watch(config.train.watchdog_s):
                result = run_baselines(config, further["baselines"])
        finally:
            distributed.shut_down()
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    except Exception as error:
        from dist_train import out_of_memory

        if out_of_memory.is_out_of_memory(error):
            return out_of_memory.report(error, None)
        raise
    scores = {name: round(row["scores"]["mse"], 6) for name, row in result["rows"].items()}
    print(json.dumps({"run": config.name, "test_mse": scores}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
