"""The forecaster: tensors in, forecast out.

``from model import TimeLLM`` is the door for users; it is opened when it is asked for, so that
``import model`` stays light. Everything else is imported from the modules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.pretrained import TimeLLM

__all__ = ["TimeLLM"]


def __getattr__(name: str) -> Any:
    if name == "TimeLLM":
        from model.pretrained import TimeLLM

        return TimeLLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
