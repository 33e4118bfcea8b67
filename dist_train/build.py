"""From a configuration to the objects it describes: forecaster and prompt builder."""

from collections.abc import Sequence

import torch

from dist_train import progress
from dist_train.config import RunConfig
from dist_train.data.prompts import PromptBuilder
from dist_train.memory_account import account
from dist_train.reproducibility import seed_everything
from model.backbone_files import BackboneFiles
from model.backbone_loading import Partition, load_backbone, load_tokenizer
from model.forecaster import Forecaster


def build_forecaster(
    config: RunConfig,
    files: BackboneFiles,
    dtype: torch.dtype,
    prompt_builder: PromptBuilder | None = None,
    *,
    num_sources: int = 1,
    num_variates: int = 1,
    zero3: Partition | None = None,
) -> Forecaster:
    """Make the model on the CPU, freshly initialised from ``train.seed``.

    Args:
        config: The run.
        files: Where the backbone's weights are.
        dtype: Compute type; the trained parameters are float32 and cast by whoever runs it.
        prompt_builder: Knows what all prompts of the run begin with; None: no prompt.
        num_sources: Sets of series that it is trained on.
        num_variates: Of a window; read where ``model.anchor_weights`` is individual.
        zero3: Where the backbone is shared out over the ranks as it is loaded.
    """
    progress.enter("loading the backbone", patience=6)  # one call, which gives no marks
    with account.phase("backbone"):
        backbone = load_backbone(config.backbone, files, dtype, seed=config.train.seed, zero3=zero3)
    progress.enter("building the model")
    seed_everything(config.train.seed)
    with account.phase("layers"):
        return Forecaster(
            config.model,
            config.data.seq_len,
            config.data.pred_len,
            backbone,
            tapr=config.tapr,
            gram=config.gram,
            prompt_prefix=None if prompt_builder is None else prompt_builder.prefix_ids,
            num_sources=num_sources,
            num_variates=num_variates,
        )


def build_prompt_builder(
    config: RunConfig, files: BackboneFiles, descriptions: Sequence[str]
) -> PromptBuilder | None:
    """Make the prompt builder of a run; None where the run has no prompt.

    Args:
        config: The run.
        files: Where the backbone's tokenizer is.
        descriptions: What the series of each source are, in words.
    """
    if config.model.prompt == "none":
        return None
    return PromptBuilder(
        load_tokenizer(files),
        config.model,
        pred_len=config.data.horizons,
        seq_len=config.data.seq_len,
        descriptions=descriptions,
    )
