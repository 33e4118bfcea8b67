"""The published Time-LLM as a contestant of the step benchmark, run from the user's clone.

Nothing of it is changed or copied. Three things are adapted in its process, because it was written
for transformers 4.31 and for DeepSpeed with bf16:

* ``from_pretrained`` of the GPT-2 classes that its module imported reads the benchmark's folder;
* attention is asked for as "eager", which 4.31 had alone: with ``output_attentions``, which it
  sets, newer versions allow nothing else;
* its patches are cast to bf16 whatever the model is, so in float32 a hook casts them back.

In bf16 the model is cast as a whole, and Adam has float32 copies, as under its DeepSpeed JSON.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.step_setting import DESCRIPTION, MasterOptimizer, Setting
from dist_train.distributed import device

LEARNING_RATE = 1e-3


class ReferenceStep:
    """Its model, and one training step as in its run_main.py."""

    def __init__(self, clone: Path, folder: Path, setting: Setting, dtype: torch.dtype) -> None:
        """Import the clone's code into this process, and build its model.

        Args:
            clone: Folder of the published code.
            folder: The backbone.
            setting: Shape.
            dtype: float32, or bfloat16 for its own bf16 path.
        """
        self.setting = setting
        torch.manual_seed(2021)
        model = _import_time_llm(clone, folder).Model(
            Namespace(
                task_name="long_term_forecast",
                pred_len=setting.pred_len,
                seq_len=setting.seq_len,
                enc_in=setting.variates,
                d_model=setting.d_model,
                d_ff=setting.d_ff,
                n_heads=setting.n_heads,
                dropout=setting.dropout,
                llm_model="GPT2",
                llm_dim=setting.width,
                llm_layers=setting.layers,
                prompt_domain=1,
                content=DESCRIPTION,
                patch_len=setting.patch_len,
                stride=setting.stride,
            )
        )
        if dtype == torch.float32:
            model.patch_embedding.register_forward_pre_hook(_cast_to_float32)
        self.model: Any = model.to(device(), dtype).train()
        self.seen: tuple[int, int] = (0, 0)
        self.model.llm_model.register_forward_pre_hook(self._look, with_kwargs=True)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = MasterOptimizer(
            trained, lambda masters: torch.optim.Adam(masters, lr=LEARNING_RATE)
        )

    def step(self, number: int) -> dict[str, float]:
        """Train on one batch; prompts are written inside its forward."""
        context, target = (part.to(device()) for part in self.setting.batch(number))

        def compute_loss() -> Tensor:
            return nn.functional.mse_loss(self.model(context, None, None, None), target)

        return self.optimizer.timed_step(compute_loss)

    def facts(self) -> dict[str, Any]:
        """Rows and tokens of the last step."""
        rows, tokens = self.seen
        patches = int(self.model.patch_nums)
        return {"rows": rows, "prompt_tokens": tokens - patches, "patch_tokens": patches}

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows, tokens, _ = kwargs["inputs_embeds"].shape
        self.seen = (rows, tokens)


def _cast_to_float32(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.float() for arg in args)


def _import_time_llm(clone: Path, folder: Path) -> Any:
    """Import its model's module, whose GPT-2 classes then load from ``folder``."""
    sys.path.insert(0, str(clone))
    from models import TimeLLM  # type: ignore[import-not-found]

    transformers.logging.disable_progress_bar()
    TimeLLM.GPT2Config = _Local(transformers.GPT2Config, folder, attn_implementation="eager")
    TimeLLM.GPT2Model = _Local(transformers.GPT2Model, folder)
    TimeLLM.GPT2Tokenizer = _Local(transformers.AutoTokenizer, folder)
    return TimeLLM


class _Local:
    """A Transformers class whose from_pretrained ignores the name that it is given."""

    def __init__(self, wrapped: Any, folder: Path, **extra: Any) -> None:
        self._wrapped, self._folder, self._extra = wrapped, folder, extra

    def from_pretrained(self, name: str, **kwargs: Any) -> Any:
        kwargs.pop("trust_remote_code", None)
        return self._wrapped.from_pretrained(self._folder, **kwargs, **self._extra)
