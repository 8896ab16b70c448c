"""The one place where tolerances come from.

What a program may lose in a format is computed, not typed: the reference runs on :mod:`gradderiv.numbers.rounding` numbers, whose errors are the
standard deviations of independent roundings, forwards and (through autograd, which works above every number) backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradderiv.checks.compare import MULTIPLE
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.number import Number
from gradderiv.numbers.rounding import Rounding

Forward = Callable[[Mapping[str, Tensor]], Tensor]


def of_gradients(
    forward: Forward, args: Mapping[str, Tensor], dY: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tolerance of each entry of each gradient, where value and reference both run ``forward`` in ``dtype`` or wider."""
    numbers = Rounding(dtype)
    leaves = {name: numbers.make(x).requires_grad_() for name, x in args.items()}
    Y = forward(leaves)
    gradients = torch.autograd.grad(Y, list(leaves.values()), numbers.make(dY), materialize_grads=True)
    return {name: MULTIPLE * _error(g) for name, g in zip(leaves, gradients, strict=True)}


def of_value(forward: Forward, args: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The tolerance of each entry of the value."""
    numbers = Rounding(dtype)
    return MULTIPLE * _error(forward({name: numbers.make(x) for name, x in args.items()}))


def of_tangent(
    forward: Forward, args: Mapping[str, Tensor], dots: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor:
    """The tolerance of each entry of the tangent: dual numbers over numbers that carry their rounding errors."""
    numbers, dual = Rounding(dtype), Dual()
    Y = forward({name: dual.make(numbers.make(x), numbers.make(dots[name])) for name, x in args.items()})
    assert isinstance(Y, DualTensor)
    return MULTIPLE * _error(Y.tangent)


def of_second_order(
    forward: Forward,
    args: Mapping[str, Tensor],
    dY: Tensor,
    dY_dot: Tensor,
    dots: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tolerance of each entry of the tangent of each gradient."""
    numbers, dual = Rounding(dtype), Dual()
    leaves = {
        name: dual.make(numbers.make(x), numbers.make(dots[name])).requires_grad_()
        for name, x in args.items()
    }
    cotangent = dual.make(numbers.make(dY), numbers.make(dY_dot))
    gradients = torch.autograd.grad(forward(leaves), list(leaves.values()), cotangent, materialize_grads=True)
    return {
        name: MULTIPLE * _error(g.tangent)
        for name, g in zip(leaves, gradients, strict=True)
        if isinstance(g, DualTensor)
    }


def _error(x: Tensor) -> Tensor:
    return x.full("e") if isinstance(x, Number) else torch.zeros_like(x)
