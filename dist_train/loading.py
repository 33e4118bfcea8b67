"""Open a finished or unfinished run from its folder, without the data it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train import distributed
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.checkpoint import CheckpointError, load_checkpoint
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import WindowBatch
from dist_train.data.prompts import PromptBuilder
from dist_train.precision import DTYPES
from model.backbone_files import fingerprint, locate_backbone
from model.forecaster import Forecaster


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A trained forecaster, ready to forecast on this rank's device."""

    config: RunConfig
    module: Forecaster
    prompt_builder: PromptBuilder | None
    series: dict[str, Any]
    """What the checkpoint knows of the series: columns, scalers, frequency, description."""

    def forecast(self, batch: WindowBatch) -> Tensor:
        """Forecast a batch that lies on this rank's device. Returns (B, H, N), standardised."""
        with torch.no_grad():
            forecast: Tensor = self.module(batch.inputs).forecast
        return forecast


def load_run(folder: Path) -> LoadedRun:
    """Load the best checkpoint of a run.

    Raises:
        CheckpointError: There is none, it is damaged, or its backbone is not the one found here.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--run {folder}: no such folder; give the folder of a run.")
    checkpoint = load_checkpoint(folder / "best")
    config = load_run_config(folder / "best" / "config.yaml")
    files = locate_backbone(config.backbone.name, weights=config.backbone.weights)
    expected = checkpoint.manifest["backbone"]["fingerprint"]
    if fingerprint(files) != expected:
        raise CheckpointError(
            f"backbone.name={config.backbone.name}: the weights found here are not the ones this "
            f"run was trained with (fingerprint {fingerprint(files)[:12]}, expected "
            f"{expected[:12]}); restore the original backbone."
        )
    dtype = DTYPES[checkpoint.manifest["dtype"]]
    module = build_forecaster(config, files, dtype)
    module.load_trained_state_dict(checkpoint.state)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    module.to(distributed.device()).eval()
    description = checkpoint.series["description"]
    return LoadedRun(
        config=config,
        module=module,
        prompt_builder=build_prompt_builder(config, files, description),
        series=checkpoint.series,
    )
