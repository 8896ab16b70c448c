"""``torch.autocast`` as PyTorch's own attention meets it: cast once on entry, then compute in one dtype."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


def autocast_on_entry(function: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """Cast the tensors to autocast's dtype, where it is on, and run ``function`` with it off.

    Otherwise autocast would choose a dtype for every line of a rule: softmax in float32, products in bfloat16;
    and the backward pass, which runs outside it, would meet both.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Found:
        if not torch._C._is_any_autocast_enabled():
            return function(*args, **kwargs)
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        device = next((a.device.type for a in tensors), "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            lower: Any = [_cast(a, dtype) for a in args]
            return function(*lower, **{name: _cast(a, dtype) for name, a in kwargs.items()})

    return call


def in_one_dtype(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """With autocast off, for what is computed on this device: a backward pass may be run inside it."""
    if torch._C._is_any_autocast_enabled():
        return torch.autocast(tensor.device.type, enabled=False)
    return contextlib.nullcontext()


def _cast(a: Any, dtype: torch.dtype) -> Any:
    """float64 stays as it is, as everywhere under autocast."""
    casts = isinstance(a, Tensor) and a.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return a.to(dtype) if casts else a
