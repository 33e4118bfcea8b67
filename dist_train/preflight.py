"""Everything about a run that can be refused before torch is imported."""

from dataclasses import dataclass

from dist_train.config import (
    ConfigError,
    RunConfig,
    check_batch_size,
    world_size_of_environment,
)
from dist_train.data.windows import ForecastData, load_forecast_data
from model.backbone_files import BackboneFiles, check_layers, locate_backbone


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the checks found, ready for use."""

    data: ForecastData
    backbone_files: BackboneFiles


def check(config: RunConfig) -> Preflight:
    """Check batch size, data and backbone of a run.

    Raises:
        ConfigError: The batch does not divide over the ranks, or is more than there is to train on.
        DataError: The series cannot be used.
        ValueError: The backbone is unknown or has fewer layers than asked for.
    """
    check_batch_size(config.train, world_size_of_environment())
    files = locate_backbone(config.backbone.name, weights=config.backbone.weights)
    check_layers(files, config.backbone.llm_layers)
    data = load_forecast_data(config.data)
    num_windows = len(data.windows["train"])
    if config.train.batch_size > num_windows:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is more than the {num_windows} training "
            "windows: lower it, or use more data."
        )
    return Preflight(data=data, backbone_files=files)
