"""The whole model: windows and prompts in, forecast out.

Shape legend (this file):
    B  windows in the micro-batch     L  seq_len       P  patches per row
    N  variates                       H  pred_len      D  d_model
    R  B * N rows, row = b * N + n    T  tokens of one row through the language model
    E  hidden width of the language model    K  top_k, neighbours per row
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.batch import (
    ForecastInputs,
    ForecastOutput,
    RetrievedWindows,
    TrendPrediction,
    from_rows,
    to_rows,
)
from model.config import GramConfig, ModelConfig, TaprConfig, num_patches
from model.forecast_head import ForecastHead
from model.instance_norm import denormalize, normalize
from model.key_value_prefix import Prefix
from model.linear_anchor import LinearAnchor
from model.memory import Memory, retrieved_forecast
from model.patching import PatchEmbedding
from model.reprogramming import ReprogrammingLayer, TextPrototypes, word_basis
from model.trend_labels import TrendLabels
from model.trend_router import TrendRouter

_BACKBONE_PREFIX = "backbone."


class Forecaster(nn.Module):
    """Trained layers around a frozen language model.

    Everything outside is float32; between the borders the trained parameters' type is used,
    whatever an engine cast them to. Normalisation, anchor and the last sum stay float32.

    Source: Time-LLM, Jin et al. 2024 (arXiv:2310.01728); the anchor is ours.
    """

    def __init__(
        self,
        config: ModelConfig,
        seq_len: int,
        pred_len: int,
        backbone: Backbone,
        *,
        tapr: TaprConfig | None = None,
        gram: GramConfig | None = None,
        prompt_prefix: Tensor | None = None,
        num_sources: int = 1,
        num_variates: int = 1,
    ) -> None:
        """Build the trained layers around ``backbone``, which is taken over as it is.

        Args:
            config: Layers around the backbone.
            seq_len: Context window, in time steps.
            pred_len: Horizon, in time steps.
            backbone: The frozen language model.
            tapr: The trend-aware patch router; None or ``use_tapr=false`` builds none of it.
            gram: The retrieval memory; None or ``use_gram=false`` builds none of it.
            prompt_prefix: Token ids that every prompt begins with, read once for all where
                ``token_order`` is prefix_cached. Shape (T,), int64; None: none.
            num_sources: Sets of series that it is trained on; each has an anchor of its own.
            num_variates: Variates of a window; read where ``anchor_weights`` is individual.

        Raises:
            ValueError: The window is shorter than a patch, ``d_ff`` wider than the backbone, or
                ``token_order=prefix_cached`` is asked of a backbone that cannot.
        """
        super().__init__()
        if config.token_order == "prefix_cached" and not backbone.can_read_ahead:
            raise ValueError(
                "model.token_order=prefix_cached: this backbone cannot read the prompt ahead: it "
                "is an encoder, whose tokens see those after them, or has blocks that are no "
                "attention, or it recomputes them (backbone.activation_checkpointing); use "
                "model.token_order=spec, or another decoder."
            )
        row = config.max_prompt_tokens + num_patches(seq_len, config.patch_len, config.stride) + 3
        if (
            config.token_order == "prefix_cached"
            and backbone.reach is not None
            and backbone.reach < row
        ):
            raise ValueError(
                f"model.token_order=prefix_cached: this backbone looks {backbone.reach} tokens "
                f"back, padding counted, and a row may have {row}: use model.token_order=spec."
            )
        self.config = config
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.num_patches = num_patches(seq_len, config.patch_len, config.stride)
        self.patching = PatchEmbedding(config)
        factored = config.prototype_map == "factored"
        self.prototypes = TextPrototypes(
            backbone.vocab_size, config.num_prototypes, width=backbone.d_llm if factored else None
        )
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
        # After the baseline's layers, so that these draw the same initial weights without them.
        self.trend: TrendRouter | None = None
        if tapr is not None and tapr.use_tapr:
            self.trend = TrendRouter(config, tapr, pred_len, backbone.d_llm)
        self.memory: Memory | None = None
        if gram is not None and gram.use_gram is True:
            self.memory = Memory(config, gram, seq_len, pred_len, backbone.d_llm)
        self.anchor = _build_anchor(config, seq_len, pred_len, num_sources, num_variates)
        self.backbone = backbone
        self.prompt_prefix: Tensor | None
        self.register_buffer("prompt_prefix", prompt_prefix, persistent=False)
        # Made from frozen weights at first use, when ZeRO-3 can gather them.
        self._common: Prefix | None = None
        self._basis: Tensor | None = None

    def forward(
        self,
        inputs: ForecastInputs,
        retrieved: RetrievedWindows | None = None,
        target: Tensor | None = None,
    ) -> ForecastOutput:
        """Forecast one micro-batch.

        Args:
            inputs: Windows (B, L, N) and, unless ``config.prompt`` is none, one left-padded
                prompt per row.
            retrieved: The neighbours of each row, where the memory is built.
            target: The next H steps, shape (B, H, N), NaN beyond the horizon of a window's source,
                for the labels of the trend losses; the forecast does not depend on it.

        Returns:
            The forecast, shape (B, H, N), float32, and what the losses need.

        Raises:
            ValueError: A shape does not fit, or prompts or neighbours are missing or unasked for.
        """
        self._check(inputs, retrieved)
        num_variates = inputs.context.shape[2]
        normalised_BLN, loc_B1N, scale_B1N = normalize(inputs.context, self.config.norm)
        rows_RL, normalised_RL = to_rows(inputs.context), to_rows(normalised_BLN)

        patches_RPD = self.patching(normalised_RL)
        prediction, knowledge, weights_RK = None, None, None
        tokens: list[Tensor] = []
        if self.trend is not None:
            patches_RPD, prediction, trend_token_R1E = self.trend(patches_RPD)
            tokens.append(trend_token_R1E)
        if self.memory is not None:
            assert retrieved is not None  # checked above
            knowledge, weights_RK, memory_tokens_R2E = self.memory(patches_RPD, rows_RL, retrieved)
            patches_RPD = knowledge.features
            tokens.append(memory_tokens_R2E)
        prototypes_SE = self.prototypes(self.words())
        patch_tokens_RPE = self.reprogramming(patches_RPD, prototypes_SE)

        states_RPE = self._read(inputs, tokens, patch_tokens_RPE)
        head_RH = self.head(states_RPE).float()
        loc_R1, scale_R1 = to_rows(loc_B1N), to_rows(scale_B1N)
        retrieved_RH = None
        if self.config.reads_future:
            assert retrieved is not None  # the configuration builds the memory with this anchor
            assert weights_RK is not None
            retrieved_RH = retrieved_forecast(rows_RL, scale_R1, retrieved, weights_RK)
        if self.anchor is None:
            fused_BHN = from_rows(self._fuse(head_RH, prediction), num_variates)
            forecast_BHN = denormalize(fused_BHN, loc_B1N, scale_B1N)
        else:
            anchor_RH = self.anchor(rows_RL, retrieved_RH, inputs.calendar_phase, inputs.sources)
            whole_RH = (anchor_RH - loc_R1) / scale_R1 + head_RH
            # Of the fusion the difference alone is added: a fusion of nothing leaves the anchor
            # as it is, bit for bit.
            correction_RH = head_RH + (self._fuse(whole_RH, prediction) - whole_RH)
            forecast_BHN = from_rows(anchor_RH + scale_R1 * correction_RH, num_variates)
        return ForecastOutput(
            forecast=forecast_BHN,
            trend=prediction,
            labels=self._labels(target, normalised_RL, loc_R1, scale_R1),
            gate=None if knowledge is None else knowledge.gate,
            match=None if knowledge is None else knowledge.match,
            neighbour_weights=weights_RK,
        )

    def _fuse(self, forecast: Tensor, prediction: TrendPrediction | None) -> Tensor:
        """Apply the expected change to a normalised forecast. (R, H) -> (R, H)."""
        if self.trend is None:
            return forecast
        assert prediction is not None
        fused_RH: Tensor = self.trend.fusion(forecast, prediction)
        return fused_RH

    def _labels(
        self, target: Tensor | None, normalised: Tensor, loc: Tensor, scale: Tensor
    ) -> TrendLabels | None:
        """Label what the horizon really does, where it is known and somebody asks."""
        if target is None or self.trend is None:
            return None
        labels: TrendLabels = self.trend.thresholds(
            (to_rows(target) - loc) / scale, normalised[:, -1]
        )
        return labels

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

    def load_buffers(self, state: Mapping[str, Tensor]) -> None:
        """Take over the persistent buffers alone: the anchor's solution, the thresholds.

        Args:
            state: What :meth:`trained_state_dict` gave; it may hold more.

        Raises:
            ValueError: A buffer is missing, or has another shape.
        """
        own = self.state_dict()
        names = [name for name in self._trained_names() if name not in self.trained_parameters()]
        wrong = [n for n in names if n not in state or state[n].shape != own[n].shape]
        if wrong:
            raise ValueError(
                f"state does not fit this model ({', '.join(wrong)}): build the model with the "
                "configuration that the state was saved with."
            )
        self.load_state_dict({name: state[name] for name in names}, strict=False)

    def _trained_names(self) -> list[str]:
        trained = self.trained_parameters().keys()
        return [
            name
            for name in self.state_dict()
            if name in trained or not name.startswith(_BACKBONE_PREFIX)
        ]

    def _read(
        self, inputs: ForecastInputs, extra: Sequence[Tensor], patch_tokens: Tensor
    ) -> Tensor:
        """Run all tokens of a row through the language model. Returns those of the patches.

        Args:
            inputs: For the prompt.
            extra: Trend and retrieval tokens. (R, t, E) each.
            patch_tokens: Shape (R, P, E).
        """
        pieces = [(piece, None) for piece in extra]
        if not self.backbone.can_read_ahead:
            tokens_RTE, mask_RT = self._join([*pieces, *self._prompt(inputs), (patch_tokens, None)])
            states_RTE: Tensor = self.backbone(tokens_RTE, mask_RT)
            return states_RTE[:, -self.num_patches :]
        prefix: Prefix | None = None
        if self.config.token_order == "prefix_cached":
            prefix = self._read_prompt(inputs, len(patch_tokens))
            tail = [*pieces, (patch_tokens, None)]
        else:
            # A causal model reads what stands before the patches first, all the same; so its last
            # block computes only the positions that the head reads.
            before = [*pieces, *self._prompt(inputs)]
            if before:
                prefix = self.backbone.read(*self._join(before, patch_tokens.dtype))
            tail = [(patch_tokens, None)]
        states_RTE = self.backbone(*_join(tail), prefix)
        return states_RTE[:, -self.num_patches :]

    def _join(
        self, pieces: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Concatenate as :func:`_join`; padding comes first where a block looks not all the way."""
        tokens_RTE, mask_RT = _join(pieces, dtype)
        if self.backbone.reach is None:
            return tokens_RTE, mask_RT
        order_RT = mask_RT.to(torch.uint8).argsort(dim=1, stable=True)
        moved_RTE = tokens_RTE.gather(1, order_RT[:, :, None].expand_as(tokens_RTE))
        return moved_RTE, mask_RT.gather(1, order_RT)

    def words(self) -> Tensor:
        """What the text prototypes are made of: the word embeddings, or their basis. (n, E)."""
        if not self.prototypes.is_factored:
            return self.backbone.word_embeddings
        known = self._basis
        device = self.prototypes.mapping.weight.device
        if known is None or known.device != device:
            with torch.inference_mode(mode=False), torch.no_grad():  # it may be trained on later
                known = word_basis(self.backbone.word_embeddings).to(device)
            self._basis = known
        return known

    def _read_prompt(self, inputs: ForecastInputs, rows: int) -> Prefix | None:
        """Read the prompts; without gradient, unless the backbone has trained matrices."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone.is_trained):
            prefix = self._common_prefix()
            if prefix is not None:
                prefix = prefix.expand(rows)
            for embedded_RTE, mask_RT in self._prompt(inputs):
                assert mask_RT is not None
                prefix = self.backbone.read(embedded_RTE, mask_RT, prefix)
        return prefix

    def _common_prefix(self) -> Prefix | None:
        """Keys and values of what all prompts begin with, one row for all.

        Made once for the run, or each time where training moves them.
        """
        ids = self.prompt_prefix
        if ids is None or len(ids) == 0:
            return None
        known = self._common
        where = (ids.device, self.backbone.dtype)
        if known is None or (known.keys[0].device, known.keys[0].dtype) != where:
            mask_1T = torch.ones_like(ids, dtype=torch.bool)[None]
            with_gradient = torch.is_grad_enabled()  # to leave inference mode would set it
            with torch.inference_mode(mode=False), torch.set_grad_enabled(with_gradient):
                known = self.backbone.read(self.backbone.embed_tokens(ids[None]), mask_1T)
            if not self.backbone.is_trained:
                self._common = known
        return known

    def _prompt(self, inputs: ForecastInputs) -> list[tuple[Tensor, Tensor | None]]:
        """The prompt's token embeddings (R, T, E) and mask (R, T), or nothing."""
        if inputs.prompt_ids is None:
            return []
        embedded_RTE = self.backbone.embed_tokens(inputs.prompt_ids)
        return [(embedded_RTE, inputs.prompt_mask)]

    def _check(self, inputs: ForecastInputs, retrieved: RetrievedWindows | None) -> None:
        shape = tuple(inputs.context.shape)
        if len(shape) != 3 or shape[1] != self.seq_len:
            raise ValueError(
                f"context has shape {shape}: pass (B, L, N) with L = data.seq_len = {self.seq_len}."
            )
        own = 1 if self.anchor is None else self.anchor.num_variates
        if own > 1 and shape[2] != own:
            raise ValueError(
                f"context has shape {shape}: with model.anchor_weights=individual pass the {own} "
                "variates that the model was trained on, in their order."
            )
        if self.config.reads_dates and inputs.calendar_phase is None:
            raise ValueError(
                f"calendar_phase is missing, and model.anchor_calendar="
                f"{self.config.anchor_calendar} reads the dates of the windows: forecast frames "
                "with TimeLLM.predict."
            )
        ids, mask = inputs.prompt_ids, inputs.prompt_mask
        if (ids is None) != (self.config.prompt == "none"):
            raise ValueError(
                f"prompt_ids is {'missing' if ids is None else 'given'} and model.prompt="
                f"{self.config.prompt}: pass prompts exactly when model.prompt is not none."
            )
        if (retrieved is None) != (self.memory is None):
            raise ValueError(
                f"retrieved is {'missing' if retrieved is None else 'given'}: pass neighbours "
                "exactly when gram.use_gram=true has built the memory."
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


def _build_anchor(
    config: ModelConfig, seq_len: int, pred_len: int, num_sources: int, num_variates: int
) -> LinearAnchor | None:
    if config.anchor == "none":
        return None
    return LinearAnchor(
        seq_len,
        pred_len,
        reads_future=config.reads_future,
        extension=config.anchor_extension,
        num_sources=num_sources,
        num_variates=num_variates if config.individual else 1,
    )


def _join(
    pieces: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Concatenate tokens (R, t, E) in reading order; a mask of None means no padding.

    Returns:
        Tokens (R, T, E) of ``dtype``, else of the last piece's type, and their mask (R, T).
    """
    dtype = dtype or pieces[-1][0].dtype
    tokens_RTE = torch.cat([tokens.to(dtype) for tokens, _ in pieces], dim=1)
    masks = [
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if mask is None
        else mask
        for tokens, mask in pieces
    ]
    return tokens_RTE, torch.cat(masks, dim=1)
