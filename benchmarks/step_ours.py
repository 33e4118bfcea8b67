"""This project's model as a contestant of the step benchmark."""

import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.step_setting import DESCRIPTION, MasterOptimizer, Setting
from benchmarks.turns import Usage
from dist_train.config import TrainConfig
from dist_train.data.prompts import PromptBuilder
from dist_train.distributed import device
from dist_train.optim import build_optimizer
from model.backbone import block_list
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone, load_tokenizer
from model.batch import ForecastInputs
from model.config import BackboneConfig, ModelConfig
from model.forecaster import Forecaster

RATE_SIZE, RATE_SIZE_GPU = 2048, 8192
RATE_PRODUCTS = 3


class OurStep:
    """The forecaster without trend router and memory, which is the published model."""

    def __init__(
        self,
        folder: Path,
        setting: Setting,
        token_order: Literal["spec", "prefix_cached"],
        dtype: torch.dtype,
        prototype_map: Literal["factored", "vocabulary"] = "factored",
        compiled: bool = False,
    ) -> None:
        """Build model, prompts and optimizer.

        Args:
            folder: The backbone.
            setting: Shape.
            token_order: As ``model.token_order``.
            dtype: Of model and gradients; the optimizer's copies are float32.
            prototype_map: As ``model.prototype_map``.
            compiled: Let torch.compile fuse what each block of the language model does.
        """
        self.setting, self.dtype = setting, dtype
        config = ModelConfig(
            patch_len=setting.patch_len,
            stride=setting.stride,
            d_model=setting.d_model,
            d_ff=setting.d_ff,
            n_heads=setting.n_heads,
            num_prototypes=setting.num_prototypes,
            dropout=setting.dropout,
            lags="fft_raw",  # as the published model writes them
            token_order=token_order,
            prototype_map=prototype_map,
            anchor="none",
        )
        name = str(folder)
        files = locate_backbone(name)
        self.prompts = PromptBuilder(
            load_tokenizer(files), config, setting.pred_len, setting.seq_len, [DESCRIPTION]
        )
        backbone = load_backbone(BackboneConfig(name=name, llm_layers=setting.layers), files, dtype)
        if compiled:
            for block in block_list(backbone.language_model, setting.layers)[1]:
                block.compile(dynamic=True)
        torch.manual_seed(2021)
        model = Forecaster(
            config,
            setting.seq_len,
            setting.pred_len,
            backbone,
            prompt_prefix=self.prompts.prefix_ids,
        )
        self.model = model.to(device(), dtype).train()
        self.optimizer = MasterOptimizer(
            self.model.trained_parameters().values(),
            lambda masters: build_optimizer(masters, TrainConfig()),
        )
        self.prompt_tokens = 0

    def step(self, number: int) -> dict[str, float]:
        """Train on one batch; writing and tokenising its prompts is in the time."""
        context, target = self.setting.batch(number)
        prompt_seconds = 0.0

        def compute_loss() -> Tensor:
            nonlocal prompt_seconds
            began = time.perf_counter()
            inputs = self._inputs(context)
            prompt_seconds = time.perf_counter() - began
            return self._loss(inputs, target.to(device()))

        return {**self.optimizer.timed_step(compute_loss), "prompt_seconds": prompt_seconds}

    def prototype_seconds(self) -> float:
        """Time the text prototypes alone: forward, backward, and their parameters' update."""
        words = self.model.words()
        gradient = torch.full(
            (self.setting.num_prototypes, self.setting.width), 1e-3, device=device()
        )
        with Usage() as usage:
            self.model.prototypes(words).backward(gradient.to(self.dtype))
            self.optimizer.step()
        self.optimizer.zero_grad()
        return usage.seconds

    def matrix_flops(self) -> float:
        """FLOP/s of a large product of two matrices of the model's type, the best of a few."""
        size = RATE_SIZE_GPU if device().type == "cuda" else RATE_SIZE
        left, right = torch.randn(2, size, size, device=device()).to(self.dtype)
        times = []
        for _ in range(RATE_PRODUCTS):
            with Usage() as usage:
                torch.mm(left, right)
            times.append(usage.seconds)
        return 2 * size**3 / min(times)

    def facts(self) -> dict[str, Any]:
        """Rows, tokens and model FLOPs (forward and backward) of a step."""
        context, target = self.setting.batch(0)
        inputs = self._inputs(context)
        with FlopCounterMode(display=False, custom_mapping=cpu_attention()) as counter:
            self._loss(inputs, target.to(device())).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()
        assert inputs.prompt_ids is not None
        rows, tokens = inputs.prompt_ids.shape
        cached = self.model.config.token_order == "prefix_cached"
        return {
            "rows": rows,
            "prompt_tokens": tokens + (len(self.prompts.prefix_ids) if cached else 0),
            "patch_tokens": self.model.num_patches,
            "flops": counter.get_total_flops(),
        }

    def _inputs(self, context: Tensor) -> ForecastInputs:
        prompts = self.prompts(context.numpy())
        assert prompts is not None
        ids, mask = (part.to(device()) for part in prompts)
        return ForecastInputs(context=context.to(device()), prompt_ids=ids, prompt_mask=mask)

    def _loss(self, inputs: ForecastInputs, target: Tensor) -> Tensor:
        return F.mse_loss(self.model(inputs).forecast, target)


def cpu_attention() -> dict[Any, Any]:
    """FLOPs of the CPU's fused attention, which torch's counter does not know."""

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return flops

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        flops: int = sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
        return flops

    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
