"""How much work the steps were: tokens through the language model, operations, their share.

Shape legend (this file):
    B  windows     N  variates     R  rows, B * N     T  prompt tokens
"""

from functools import lru_cache

import torch

from dist_train.config import RunConfig
from dist_train.data.collate import WindowBatch
from dist_train.device_peaks import peak_flops
from dist_train.flops import MicroBatch, micro_batch_flops, total_flops
from dist_train.objective import Work
from dist_train.shapes import BackboneShape, shape_of
from model.backbone_files import BackboneFiles
from model.config import LANGUAGE_MODELS, num_patches

TERA = 1e12


class Throughput:
    """Counts the work of micro-batches, on the CPU and without waiting for the device."""

    def __init__(
        self,
        config: RunConfig,
        files: BackboneFiles,
        dtype: torch.dtype,
        *,
        common_tokens: int = 0,
        device_name: str | None = None,
    ) -> None:
        """Learn what a row costs.

        Args:
            config: The run; ``gram.use_gram`` is decided.
            files: The backbone, for its shape.
            dtype: Compute type; the peak is one of bf16 and fp16.
            common_tokens: What every prompt begins with where ``model.token_order`` is
                prefix_cached: read once for the run, and so not in a batch's prompts.
            device_name: Of the device that this rank computes on; None: a CPU.
        """
        self._config = config
        self._common = common_tokens if config.model.token_order == "prefix_cached" else 0
        patches = num_patches(config.data.seq_len, config.model.patch_len, config.model.stride)
        self._tokens_per_row = (
            patches + int(config.tapr.use_tapr) + 2 * (config.gram.use_gram is True)
        )
        self._shape = _shape(config, files)
        half = dtype in (torch.bfloat16, torch.float16)
        self.peak = peak_flops(device_name) if half and device_name is not None else None
        # Prompts of a batch have one of a few dozen lengths.
        self._flops = lru_cache(maxsize=512)(self._count_flops)

    def work_of(self, batch: WindowBatch) -> Work:
        """Count one micro-batch that is still on the CPU. Not collective."""
        windows, _, variates = batch.context.shape
        tokens, longest = windows * variates * self._tokens_per_row, 0
        if batch.prompt_mask is not None:
            tokens += int(batch.prompt_mask.sum())
            longest = batch.prompt_mask.shape[1]
        return Work(tokens=tokens, flops=self._flops(windows, variates, longest))

    def rates(self, work: Work, seconds: float, ranks: int) -> dict[str, float]:
        """Turn the work of all ranks into metrics.

        Args:
            work: Summed over steps and ranks.
            seconds: They took.
            ranks: Of the job.
        """
        seconds = max(seconds, 1e-9)
        metrics = {"perf/tokens_per_s": round(work.tokens / seconds, 1)}
        if work.flops:
            metrics["perf/tflop_per_s"] = float(f"{work.flops / seconds / TERA:.4g}")
            if self.peak is not None:
                share = work.flops / seconds / (ranks * self.peak)
                metrics["perf/peak_percent"] = round(100 * share, 3)
        return metrics

    def _count_flops(self, windows: int, variates: int, prompt_tokens: int) -> float:
        if self._shape is None:
            return 0.0
        batch = MicroBatch(
            windows=windows,
            variates=variates,
            prompt_tokens=prompt_tokens + self._common,
            common_tokens=self._common,
        )
        return total_flops(micro_batch_flops(self._config, self._shape, batch))


def _shape(config: RunConfig, files: BackboneFiles) -> BackboneShape | None:
    """Read the shape of the backbone; None for an architecture whose products are not known."""
    layers = config.backbone.llm_layers if config.backbone.kind in LANGUAGE_MODELS else 1
    try:
        return shape_of(files.config, layers, files.name)
    except ValueError:
        return None
