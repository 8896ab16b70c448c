"""``torch.autocast`` as PyTorch's own attention meets it: cast once on entry, then compute in one dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def autocast_on_entry(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Cast the tensors to autocast's dtype, where it is on, and run ``function`` with it off.

    Otherwise autocast would choose a dtype for every line of a rule: softmax in float32, products in bfloat16;
    and the backward pass, which runs outside it, would meet both.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        device = next((a.device.type for a in tensors), "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            lower: Any = [_cast(a, dtype) for a in args]
            return function(*lower, **{name: _cast(a, dtype) for name, a in kwargs.items()})

    return call


def _cast(a: Any, dtype: torch.dtype) -> Any:
    """float64 stays as it is, as everywhere under autocast."""
    casts = isinstance(a, Tensor) and a.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return a.to(dtype) if casts else a
