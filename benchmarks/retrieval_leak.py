"""What it costs when a training query may retrieve its own answer.

    python -m benchmarks.retrieval_leak [--data.root DIR] [--quick]

The same closed-form head is fitted on the window alone and on [window, retrieved futures], with
three masks on what a *training* query retrieves. Validation and test queries need none of them:
every future of the bank ends before their forecasts start. Prints a Markdown table and, last, one
JSON line. ETTh1 takes minutes on one core; --quick fits and scores every 8th window, and takes the
embedded vic_elec (a part of its training split) where ETTh1 is not on this machine.

Expected on ETTh1, test MSE: .370 without retrieval, .361 masked, .429 query only, .451 unmasked.

Shape legend (this file):
    B  windows of a split     L  seq_len     F  width of what was retrieved
    N  variates               H  pred_len
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from benchmarks.retrievers import (
    POOLINGS,
    ProjectRetriever,
    Windows,
    read_windows,
    retrieve_by_pearson,
    smallest_bank,
)
from benchmarks.ridge_head import HeadScore, score_head
from dist_train.config import fail
from dist_train.data.config import DataConfig, DataError
from dist_train.data.windows import ForecastData, WindowSet, load_forecast_data
from dist_train.reproducibility import code_fingerprint
from memory_index.exclusion import Exclusion
from model.anchor_fit import LAMBDAS

SEQ_LEN, PRED_LEN = 336, 96
# Retrieved inputs overfit sooner: one decade more penalty (EVIDENCE 1).
LAMBDAS_RETRIEVED = (1e2, 1e3, 1e4, 1e5)
OWN_TOP_KS = (5, 20)
QUICK_STRIDE = 8
# About as many training windows as ETTh1 has.
QUICK_VIC_ELEC_PERCENT = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: a way of retrieving, and what the head made of it."""

    retriever: str
    """none, pearson, own_top5 or own_top20."""

    mask: str
    """masked, query_only or unmasked, in training; none without retrieval."""

    head: HeadScore
    """The ridge on [window, retrieved]."""

    alone: Mapping[str, float]
    """MSE of the retrieved futures alone, by split; without retrieval, of repeating the last."""


def measure(data: ForecastData, stride: int = 1) -> Iterator[Row]:
    """Fit the head for every retriever and mask.

    Args:
        data: One series; its training windows are the bank.
        stride: Fit and score on every ``stride``-th window. The bank always holds all.

    Yields:
        The row without retrieval first, then three masks for each retriever, strictest first.

    Raises:
        ValueError: Several series, or too few training windows for the mask.
    """
    train = data.windows["train"]
    needed = smallest_bank(train.seq_len, train.pred_len)
    if len(train) < needed:
        raise ValueError(
            f"the training split has {len(train)} windows of data.seq_len={train.seq_len} and "
            f"data.pred_len={train.pred_len}: the mask needs {needed}, bring a longer series."
        )
    splits = {
        split: read_windows(data.windows[split], stride) for split in ("train", "val", "test")
    }
    nothing = {split: windows.target[..., :0] for split, windows in splits.items()}
    unmoved = {split: torch.zeros_like(windows.target) for split, windows in splits.items()}
    yield Row(
        retriever="none",
        mask="none",
        head=score_head(splits, nothing, LAMBDAS),
        alone=_score_alone(splits, unmoved),
    )
    yield from _measure_pearson(train, splits)
    yield from _measure_own(train, splits)


def exclusions(seq_len: int, pred_len: int) -> dict[str, Exclusion]:
    """Say what each mask hides in training: starts less than L + H, 1 and 0 steps away."""
    spans = {"masked": (seq_len, pred_len), "query_only": (1, 0), "unmasked": (0, 0)}
    return {
        mask: Exclusion(seq_len=length, pred_len=horizon, past_only=False)
        for mask, (length, horizon) in spans.items()
    }


def _measure_pearson(train: WindowSet, splits: Mapping[str, Windows]) -> Iterator[Row]:
    bank = read_windows(train)
    masks = exclusions(train.seq_len, train.pred_len)

    def retrieve(split: str, mask: str) -> list[Tensor]:
        return [retrieve_by_pearson(bank, splits[split], g, masks[mask]) for g in POOLINGS]

    ahead = {split: retrieve(split, "unmasked") for split in ("val", "test")}
    for mask in masks:
        found = {"train": retrieve("train", mask), **ahead}
        inputs_BNF = {split: torch.cat(parts, dim=-1) for split, parts in found.items()}
        finest_BNH = {split: parts[POOLINGS.index(1)] for split, parts in found.items()}
        yield Row(
            retriever="pearson",
            mask=mask,
            head=score_head(splits, inputs_BNF, LAMBDAS_RETRIEVED),
            alone=_score_alone(splits, finest_BNH),
        )


def _measure_own(train: WindowSet, splits: Mapping[str, Windows]) -> Iterator[Row]:
    own = ProjectRetriever(train)
    past = Exclusion(seq_len=train.seq_len, pred_len=train.pred_len, past_only=True)
    ahead = {split: own.retrieve(splits[split], OWN_TOP_KS, past) for split in ("val", "test")}
    for mask, exclusion in exclusions(train.seq_len, train.pred_len).items():
        found = {"train": own.retrieve(splits["train"], OWN_TOP_KS, exclusion), **ahead}
        for index, k in enumerate(OWN_TOP_KS):
            futures_BNH = {split: parts[index] for split, parts in found.items()}
            yield Row(
                retriever=f"own_top{k}",
                mask=mask,
                head=score_head(splits, futures_BNH, LAMBDAS_RETRIEVED),
                alone=_score_alone(splits, futures_BNH),
            )


def _score_alone(splits: Mapping[str, Windows], futures: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        split: float((futures[split] - windows.anchored_target).square().mean())
        for split, windows in splits.items()
    }


def alarm(row: Row, without: Row) -> float:
    """Retrieval-only MSE over repeat-last MSE, on train over validation; under 0.5 is suspect.

    Args:
        row: The retriever.
        without: The row without retrieval, which holds the MSE of repeating the last value.

    Source: SPEC 1.2, paragraph "Never see the answer".
    """
    train, val = (row.alone[split] / without.alone[split] for split in ("train", "val"))
    return train / val


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out as Markdown; the row without retrieval first."""
    lines = [
        "| retriever | mask in training | test MSE | val MSE | lambda | norm "
        "| retrieved alone: train | val | test | alarm |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head, alone = row.head, " | ".join(f"{mse:.4f}" for mse in row.alone.values())
        lines.append(
            f"| {row.retriever} | {row.mask} | {head.test_mse:.4f} | {head.val_mse:.4f} "
            f"| {head.lam:g} | {head.norm} | {alone} | {alarm(row, rows[0]):.3f} |"
        )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Name the numbers: ``mse_masked``, ``train_retrieval_masked``, ``own_top5_mse_masked``..."""
    numbers: dict[str, float] = {}
    for row in rows:
        prefix = f"{row.retriever}_" if row.retriever.startswith("own") else ""
        numbers[f"{prefix}mse_{row.mask}"] = row.head.test_mse
        numbers[f"{prefix}val_mse_{row.mask}"] = row.head.val_mse
        if row.retriever == "none":
            numbers |= {f"{split}_repeat_last": mse for split, mse in row.alone.items()}
            continue
        numbers[f"{prefix}train_retrieval_{row.mask}"] = row.alone["train"]
        # No mask of the training queries touches what the others retrieve.
        numbers |= {f"{prefix}{split}_retrieval": row.alone[split] for split in ("val", "test")}
    return {name: round(number, 5) for name, number in numbers.items()}


def _load(root: str | None, quick: bool) -> ForecastData:
    try:
        return load_forecast_data(
            DataConfig(dataset="ETTh1", root=root, seq_len=SEQ_LEN, pred_len=PRED_LEN)
        )
    except DataError as error:
        # A folder that was named must hold the file; only the search may come up empty.
        if root is not None or not quick:
            raise
        print(f"note: measuring vic_elec instead: {error}", file=sys.stderr, flush=True)
    percent = QUICK_VIC_ELEC_PERCENT
    return load_forecast_data(DataConfig(seq_len=SEQ_LEN, pred_len=PRED_LEN, percent=percent))


def commit() -> str | None:
    """Commit of this checkout; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0 done, 2 refused with a message."""
    parser = ArgumentParser(
        prog="python -m benchmarks.retrieval_leak",
        exit_on_error=False,
        description="What it costs when a training query may retrieve its own answer.",
    )
    parser.add_argument("--data.root", type=str, help="Folder that holds ETTh1.csv.")
    parser.add_argument("--quick", action="store_true", help="Every 8th window; under a minute.")
    began, rows = time.monotonic(), []
    # Asked first: a checkout may move while the numbers are still being made.
    code = {"commit": commit(), "code": code_fingerprint()}
    try:
        options = parser.parse_args(argv)
        data = _load(options.data.root, options.quick)
        for row in measure(data, QUICK_STRIDE if options.quick else 1):
            rows.append(row)
            print(f"{row.retriever}, {row.mask}: {row.head}", file=sys.stderr, flush=True)
    except (ArgumentError, ValueError, OSError) as error:
        return fail(error)
    print(table(rows))
    about = {
        "dataset": data.series_set.name,
        "quick": options.quick,
        "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(summary(rows) | about | code), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
