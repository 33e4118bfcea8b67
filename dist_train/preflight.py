"""Everything about a run that can be refused before torch is imported."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dist_train.config import (
    SKIPPED_STEPS,
    ConfigError,
    RunConfig,
    check_batch_size,
    config_to_dict,
    count_steps,
    world_size_of_environment,
)
from dist_train.data.clock import check_clocks
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.deepspeed_json import load_user_json
from dist_train.reproducibility import code_fingerprint
from model.backbone_files import BackboneFiles, check_layers, fingerprint, locate_backbone
from model.config import LANGUAGE_MODELS, num_patches


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the checks found, ready for use."""

    data: ForecastData
    backbone_files: BackboneFiles


def identity(config: RunConfig, checked: Preflight, world_size: int) -> str:
    """Hash everything that decides the numbers of a run; not its name, checkpoints or tracking.

    Args:
        config: The run.
        checked: Its data and backbone.
        world_size: Ranks of the job.
    """
    unimportant = ("name", "runs_dir", "checkpoint", "tracking")
    settings = config_to_dict(config) | dict.fromkeys(unimportant)
    own_json = config.deepspeed.config_file
    parts = {
        "config": settings,
        "code": code_fingerprint(),
        "ranks": world_size,
        "data": checked.data.series_set.checksum,
        "backbone": fingerprint(checked.backbone_files),
        "deepspeed": Path(own_json).read_text(encoding="utf-8") if own_json else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check(
    config: RunConfig, *, ranks: int | None = None, data: ForecastData | None = None
) -> Preflight:
    """Check batch size, data and backbone of a run.

    Args:
        config: The run.
        ranks: Ranks it will have; None: those of this job.
        data: Its series, where they have been read before.

    Raises:
        ConfigError: The batch does not divide over the ranks, or is more than there is to train
            on, or the run has fewer steps than a profile needs.
        DataError: The series cannot be used.
        ValueError: The backbone is unknown or has fewer layers than asked for.
    """
    check_batch_size(config.train, world_size_of_environment() if ranks is None else ranks)
    files = locate_backbone(config.backbone.name, kind=config.backbone.kind)
    if config.backbone.kind in LANGUAGE_MODELS:
        check_layers(files, config.backbone.llm_layers)
    if config.model.d_ff > files.d_llm:
        raise ConfigError(
            f"model.d_ff={config.model.d_ff}: the head reads that many features of a position, "
            f"and {config.backbone.name} has {files.d_llm}; use at most {files.d_llm}."
        )
    if config.backbone.kind in LANGUAGE_MODELS:
        _check_positions(config, files)
    if config.deepspeed.config_file is not None:
        load_user_json(Path(config.deepspeed.config_file))
    if data is None:
        data = load_forecast_data(config.data, with_dates=config.model.reads_dates)
    if config.gram.use_gram is True:
        check_clocks(data.sources)
    num_windows = len(data.windows["train"])
    if not num_windows:
        raise ConfigError(
            "data.sources: none of them has a training window: raise percent of one of them."
        )
    longest = max(config.data.horizons[number] for number in data.trained_sources)
    if longest < config.data.pred_len:
        raise ConfigError(
            f"data.pred_len={config.data.pred_len}: the sources that have training windows have at "
            f"most pred_len={longest}, so nothing would teach the later steps; raise percent of "
            f"one that is forecast farther, or lower data.pred_len to {longest}."
        )
    if config.train.batch_size > num_windows:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is more than the {num_windows} training "
            "windows: lower it, or use more data."
        )
    _check_profile(config, num_windows // config.train.batch_size)
    return Preflight(data=data, backbone_files=files)


def _check_profile(config: RunConfig, steps_per_epoch: int) -> None:
    """Refuse a profile of steps that will never come."""
    train = config.train
    steps = count_steps(train, steps_per_epoch)
    needed = SKIPPED_STEPS + train.profile_steps
    if train.profile and steps < needed:
        raise ConfigError(
            f"train.profile_steps={train.profile_steps}: a profile leaves out {SKIPPED_STEPS} "
            f"steps and needs {needed} in all, and this run has {steps}: lower "
            "train.profile_steps, or raise train.max_steps or train.max_epochs."
        )


def _check_positions(config: RunConfig, files: BackboneFiles) -> None:
    """Refuse rows that may be longer than the backbone has positions."""
    limit = files.config.get("max_position_embeddings") or files.config.get("n_positions")
    patches = num_patches(config.data.seq_len, config.model.patch_len, config.model.stride)
    prompt = 0 if config.model.prompt == "none" else config.model.max_prompt_tokens
    extra = int(config.tapr.use_tapr) + 2 * (config.gram.use_gram is not False)
    tokens = patches + prompt + extra
    if isinstance(limit, int) and tokens > limit:
        raise ConfigError(
            f"data.seq_len={config.data.seq_len} makes {patches} patches, with prompt and further "
            f"tokens up to {tokens} per row, and {config.backbone.name} has {limit} positions: "
            "raise model.stride, or lower data.seq_len or model.max_prompt_tokens."
        )
