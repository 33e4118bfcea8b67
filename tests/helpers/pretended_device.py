"""A device that is not there: operators know shapes, types and places, and compute nothing.

Whatever would mix it with the CPU raises, and so does whatever would wait for a result (.item(),
bool(), a shape that depends on numbers): what a GPU would refuse, or be slowed by. It changes the
process it is made in, so use it in one of its own (tests.helpers.ranks).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class PretendedDevice(TorchFunctionMode):
    """Context in which tensors that :meth:`put` gave are computed with."""

    def __init__(self) -> None:
        super().__init__()
        _setup_privateuseone_for_python_backend(NAME, _Module())
        self._tensors = FakeTensorMode()

    def put(self, tensor: Tensor) -> Tensor:
        """Give a tensor like this one, on the device."""
        shape = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        fake: Tensor = FakeTensor(self._tensors, shape, torch.device(f"{NAME}:0"))
        return fake.requires_grad_(tensor.requires_grad)

    def put_module(self, module: nn.Module) -> None:
        """Put all parameters and buffers of a module there, in place."""
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                kept.update({n: self.put(t) for n, t in kept.items() if t is not None})

    def __enter__(self) -> "PretendedDevice":
        self._tensors.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tensors.__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == NAME:
            del kwargs["device"]
            return self.put(torch.tensor(*args, **kwargs))
        return func(*args, **kwargs)
