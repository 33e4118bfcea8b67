"""The whole model: windows and prompts in, forecast out.

Shape legend (this file):
    B  windows in the micro-batch     L  seq_len       P  patches per row
    N  variates                       H  pred_len      D  d_model
    R  B * N rows, row = b * N + n    T  tokens of one row through the language model
    E  hidden width of the language model
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.batch import ForecastInputs, ForecastOutput
from model.config import ModelConfig, num_patches
from model.forecast_head import ForecastHead
from model.instance_norm import denormalize, normalize
from model.linear_anchor import LinearAnchor
from model.patching import PatchEmbedding
from model.reprogramming import ReprogrammingLayer, TextPrototypes

_BACKBONE_PREFIX = "backbone."


class Forecaster(nn.Module):
    """Trained layers around a frozen language model.

    Everything outside is float32; between the borders the trained parameters' type is used,
    whatever an engine cast them to. Normalisation, anchor and the last sum stay float32.

    Source: Time-LLM, Jin et al. 2024 (arXiv:2310.01728); the anchor is ours.
    """

    def __init__(
        self, config: ModelConfig, seq_len: int, pred_len: int, backbone: Backbone
    ) -> None:
        """Build the trained layers around ``backbone``, which is taken over as it is.

        Args:
            config: Layers around the backbone.
            seq_len: Context window, in time steps.
            pred_len: Horizon, in time steps.
            backbone: The frozen language model.

        Raises:
            ValueError: The window is shorter than a patch, or ``d_ff`` wider than the backbone.
        """
        super().__init__()
        self.config = config
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.num_patches = num_patches(seq_len, config.patch_len, config.stride)
        self.patching = PatchEmbedding(config)
        self.prototypes = TextPrototypes(backbone.vocab_size, config.num_prototypes)
        self.reprogramming = ReprogrammingLayer(
            config.d_model, config.n_heads, config.d_ff, backbone.d_llm, config.dropout
        )
        self.head = ForecastHead(
            self.num_patches,
            config.d_ff,
            backbone.d_llm,
            pred_len,
            config.dropout,
            zero_init=config.anchor != "none",
        )
        self.anchor = LinearAnchor(seq_len, pred_len) if config.anchor != "none" else None
        self.backbone = backbone

    def forward(self, inputs: ForecastInputs) -> ForecastOutput:
        """Forecast one micro-batch.

        Args:
            inputs: Windows (B, L, N) and, unless ``config.prompt`` is none, one left-padded
                prompt per row.

        Returns:
            The forecast, shape (B, H, N), float32.

        Raises:
            ValueError: A shape does not fit, or prompts are missing or unasked for.
        """
        self._check(inputs)
        num_variates = inputs.context.shape[2]
        normalised_BLN, loc_B1N, scale_B1N = normalize(inputs.context, self.config.norm)

        patches_RPD = self.patching(_to_rows(normalised_BLN))
        prototypes_SE = self.prototypes(self.backbone.word_embeddings)
        patch_tokens_RPE = self.reprogramming(patches_RPD, prototypes_SE)

        tokens_RTE, mask_RT = _join([*self._prompt(inputs), (patch_tokens_RPE, None)])
        states_RTE = self.backbone(tokens_RTE, mask_RT)

        head_RH = self.head(states_RTE[:, -self.num_patches :])
        head_BHN = _from_rows(head_RH, num_variates)
        if self.anchor is None:
            return ForecastOutput(forecast=denormalize(head_BHN, loc_B1N, scale_B1N))
        anchor_BHN = _from_rows(self.anchor(_to_rows(inputs.context)), num_variates)
        return ForecastOutput(forecast=anchor_BHN + scale_B1N * head_BHN.float())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that get a gradient, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trained_state_dict(self) -> dict[str, Tensor]:
        """Copy all that a checkpoint needs beside the backbone's name.

        Returns:
            Trained parameters, and every persistent buffer outside the backbone, by name:
            detached, contiguous, sharing memory with nothing.
        """
        state = self.state_dict()
        return {
            name: state[name].detach().clone(memory_format=torch.contiguous_format)
            for name in self._trained_names()
        }

    def load_trained_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`trained_state_dict` gave; mutates in place, or not at all.

        Raises:
            ValueError: A name is missing or unexpected, or a shape differs; names all of them.
        """
        own = self.state_dict()
        expected = set(self._trained_names())
        wrong = [f"missing {name}" for name in sorted(expected - state.keys())]
        wrong += [f"unexpected {name}" for name in sorted(state.keys() - expected)]
        wrong += [
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in sorted(expected & state.keys())
            if state[name].shape != own[name].shape
        ]
        if wrong:
            raise ValueError(
                f"state does not fit this model ({'; '.join(wrong)}): build the model with the "
                "configuration that the state was saved with."
            )
        self.load_state_dict(dict(state), strict=False)

    def _trained_names(self) -> list[str]:
        trained = self.trained_parameters().keys()
        return [
            name
            for name in self.state_dict()
            if name in trained or not name.startswith(_BACKBONE_PREFIX)
        ]

    def _prompt(self, inputs: ForecastInputs) -> list[tuple[Tensor, Tensor | None]]:
        """The prompt's token embeddings (R, T, E) and mask (R, T), or nothing."""
        if inputs.prompt_ids is None:
            return []
        embedded_RTE = self.backbone.embed_tokens(inputs.prompt_ids)
        return [(embedded_RTE, inputs.prompt_mask)]

    def _check(self, inputs: ForecastInputs) -> None:
        shape = tuple(inputs.context.shape)
        if len(shape) != 3 or shape[1] != self.seq_len:
            raise ValueError(
                f"context has shape {shape}: pass (B, L, N) with L = data.seq_len = {self.seq_len}."
            )
        ids, mask = inputs.prompt_ids, inputs.prompt_mask
        if (ids is None) != (self.config.prompt == "none"):
            raise ValueError(
                f"prompt_ids is {'missing' if ids is None else 'given'} and model.prompt="
                f"{self.config.prompt}: pass prompts exactly when model.prompt is not none."
            )
        if ids is None:
            return
        rows = shape[0] * shape[2]
        if mask is None or ids.ndim != 2 or len(ids) != rows or mask.shape != ids.shape:
            found = None if mask is None else tuple(mask.shape)
            raise ValueError(
                f"prompt_ids and prompt_mask have shapes {tuple(ids.shape)} and {found}: pass one "
                f"row of tokens for each of the {rows} rows, and a mask of the same shape."
            )


def _join(pieces: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Concatenate tokens (R, t, E) in reading order; a mask of None means no padding.

    Returns:
        Tokens (R, T, E) of the last piece's type, and their mask (R, T).
    """
    dtype = pieces[-1][0].dtype
    tokens_RTE = torch.cat([tokens.to(dtype) for tokens, _ in pieces], dim=1)
    masks = [
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if mask is None
        else mask
        for tokens, mask in pieces
    ]
    return tokens_RTE, torch.cat(masks, dim=1)


def _to_rows(windows: Tensor) -> Tensor:
    """(B, L, N) -> (R, L)."""
    return windows.transpose(1, 2).flatten(0, 1)


def _from_rows(rows: Tensor, num_variates: int) -> Tensor:
    """(R, H) -> (B, H, N)."""
    return rows.view(-1, num_variates, rows.shape[1]).transpose(1, 2)
