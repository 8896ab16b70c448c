"""Smooth functions of one number, each with its derivative, and torch's backward of each.

``value`` is torch's own function, ``slope`` its derivative in terms of x and y = value(x): forward mode on dual numbers needs no more.
``composed`` says what it is made of, for numbers on which only exp, log, roots, erf, sin and cos are known. All three are ordinary torch, and run on every number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import arithmetic, aten, no_meaning

LN2 = math.log(2)
HALF_ROOT = math.sqrt(0.5)
TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)
NORMAL = 1 / math.sqrt(2 * math.pi)  # exp(−x²/2)·NORMAL is the normal density
TANH_GELU = math.sqrt(2 / math.pi), 0.044715


@dataclass(frozen=True)
class Smooth:
    """A function of one number; see the module."""

    value: Callable[[Any], Any]
    slope: Callable[[Any, Any], Any]
    composed: Callable[[System, Any], Any]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + torch.exp(-x))


def _silu_slope(x: Any, y: Any) -> Any:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _gelu_slope(x: Any, y: Any) -> Any:
    return 0.5 * (1 + torch.erf(x * HALF_ROOT)) + x * torch.exp(x * x * -0.5) * NORMAL


def _tanh_gelu(x: Any) -> tuple[Any, Any]:
    """tanh(√(2/π)(x + c x³)) and the derivative of its argument."""
    root, c = TANH_GELU
    return torch.tanh((x + x * x * x * c) * root), (1 + x * x * (3 * c)) * root


def _tanh_gelu_slope(x: Any, y: Any) -> Any:
    t, inner = _tanh_gelu(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner


FUNCTIONS = {
    "exp": Smooth(torch.exp, lambda x, y: y, lambda system, x: system.exp(x)),
    "expm1": Smooth(torch.expm1, lambda x, y: y + 1, lambda system, x: torch.exp(x) - 1),
    "exp2": Smooth(torch.exp2, lambda x, y: y * LN2, lambda system, x: system.exp2(x)),
    "log2": Smooth(torch.log2, lambda x, y: 1 / (x * LN2), lambda system, x: system.log2(x)),
    "log1p": Smooth(torch.log1p, lambda x, y: 1 / (1 + x), lambda system, x: torch.log(1 + x)),
    "sqrt": Smooth(torch.sqrt, lambda x, y: 0.5 / y, lambda system, x: system.sqrt(x)),
    "rsqrt": Smooth(torch.rsqrt, lambda x, y: y * y * y * -0.5, lambda system, x: system.rsqrt(x)),
    "sin": Smooth(torch.sin, lambda x, y: torch.cos(x), lambda system, x: system.sin(x)),
    "cos": Smooth(torch.cos, lambda x, y: -torch.sin(x), lambda system, x: system.cos(x)),
    "erf": Smooth(torch.erf, lambda x, y: torch.exp(-(x * x)) * TWO_BY_ROOT_PI, lambda system, x: system.erf(x)),
    "sigmoid": Smooth(torch.sigmoid, lambda x, y: y * (1 - y), lambda system, x: sigmoid(x)),
    "tanh": Smooth(torch.tanh, lambda x, y: 1 - y * y, lambda system, x: 1 - 2 / (torch.exp(2 * x) + 1)),
    "silu": Smooth(functional.silu, _silu_slope, lambda system, x: x * sigmoid(x)),
}  # fmt: skip

GELU = {
    "none": Smooth(functional.gelu, _gelu_slope, lambda system, x: x * 0.5 * (1 + torch.erf(x * HALF_ROOT))),
    "tanh": Smooth(
        lambda x: functional.gelu(x, approximate="tanh"),
        _tanh_gelu_slope,
        lambda system, x: x * 0.5 * (1 + _tanh_gelu(x)[0]),
    ),
}


def softplus(beta: float) -> Smooth:
    """log(1 + exp(βx))/β."""

    def composed(system: System, x: Any) -> Any:
        return torch.log(1 + torch.exp(x)) if beta == 1 else torch.log(1 + torch.exp(x * beta)) / beta

    def slope(x: Any, y: Any) -> Any:
        return torch.sigmoid(x if beta == 1 else x * beta)

    return Smooth(lambda x: functional.softplus(x, beta), slope, composed)


def half_power(k: int) -> Smooth:
    """x^(k/2) for an odd k."""

    def composed(system: System, x: Any) -> Any:
        root = torch.rsqrt(x) if k < 0 else torch.sqrt(x)
        return root if abs(k) == 1 else root ** abs(k)

    def slope(x: Any, y: Any) -> Any:
        return x ** (k / 2 - 1) * (k / 2)

    return Smooth(lambda x: x ** (k / 2), slope, composed)


for _name, _smooth in FUNCTIONS.items():
    if _name != "exp":  # has its own place in the arithmetic
        arithmetic(getattr(aten, _name).default)(lambda system, x, f=_smooth: system.smooth(f, x))


@arithmetic(aten.gelu.default)
def _gelu(system: System, x: Number, *, approximate: str = "none") -> Number:
    return system.smooth(GELU[approximate], x)


@arithmetic(aten.softplus.default)
def _softplus(system: System, x: Number, beta: Any = 1, threshold: Any = 20) -> Number:
    if threshold < 20:
        raise no_meaning(aten.softplus.default, f"with the threshold {threshold}")
    return system.smooth(softplus(beta), x)


@arithmetic(aten.log_sigmoid_forward.default)
def _log_sigmoid(system: System, x: Number) -> tuple[Tensor, Tensor]:
    return -functional.softplus(-x), x.new_zeros(0)


# ---------------------------------------------------------------- as autograd asks for them


@arithmetic(aten.sigmoid_backward.default)
def _sigmoid_backward(system: System, g: Any, y: Any) -> Any:
    return g * (y * (1 - y))


@arithmetic(aten.tanh_backward.default)
def _tanh_backward(system: System, g: Any, y: Any) -> Any:
    return g * (1 - y * y)


@arithmetic(aten.silu_backward.default)
def _silu_backward(system: System, g: Any, x: Any) -> Any:
    return g * _silu_slope(x, None)


@arithmetic(aten.gelu_backward.default)
def _gelu_backward(system: System, g: Any, x: Any, *, approximate: str = "none") -> Any:
    return g * GELU[approximate].slope(x, None)


@arithmetic(aten.softplus_backward.default)
def _softplus_backward(system: System, g: Any, x: Any, beta: Any, threshold: Any) -> Any:
    return g * softplus(beta).slope(x, None)


@arithmetic(aten.log_sigmoid_backward.default)
def _log_sigmoid_backward(system: System, g: Any, x: Any, buffer: Any) -> Any:
    return g * torch.sigmoid(-x)
