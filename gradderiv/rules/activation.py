"""Functions of one number, entry by entry.

    Y = f(X)      Ẏ = f′(X) ∘ Ẋ      dX = f′(X) ∘ dY      dẊ = f′(X) ∘ dẎ + f″(X) ∘ Ẋ ∘ dY

    relu         max(x, 0)                                  Nair & Hinton 2010; f′(0) = 0, as torch has it
    silu         x σ(x)                                     Elfwing et al. 2017; Ramachandran et al. 2017
    gelu         x Φ(x)                                     Hendrycks & Gimpel 2016, §2
    gelu_tanh    x σ(2u), u = √(2/π) (x + 0.044715 x³)      its approximation, of GPT-2; ½ (1 + tanh u) = σ(2u)

X, Y of any shape.   σ the logistic function, Φ the normal distribution, φ its density
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradderiv.rules._inputs import require, require_tensors, rule
from gradderiv.rules.steps import Operator


class Activation(NamedTuple):
    """f, f′ and f″."""

    f: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]


class ActivationSaved(NamedTuple):
    """The argument, and the function's name."""

    X: Tensor
    function: str


class ActivationGradients(NamedTuple):
    """∂ℓ/∂X."""

    X: Tensor


def _step(x: Tensor) -> Tensor:
    """1 where x > 0, else 0."""
    return torch.where(x > 0, torch.ones_like(x), torch.zeros_like(x))


def _silu_first(x: Tensor) -> Tensor:
    """σ + x σ (1 − σ)"""
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


def _silu_second(x: Tensor) -> Tensor:
    """σ (1 − σ) (2 + x (1 − 2 σ))"""
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _density(x: Tensor) -> Tensor:
    """φ(x)"""
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _gelu_first(x: Tensor) -> Tensor:
    """Φ + x φ"""
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * _density(x)


def _gelu_second(x: Tensor) -> Tensor:
    """(2 − x²) φ"""
    return (2 - x * x) * _density(x)


ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715


def _inner(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t = tanh u, u′ and u″ of u = √(2/π) (x + 0.044715 x³)"""
    t = torch.tanh(ROOT * (x + CUBE * x * x * x))
    return (
        t,
        ROOT * (1 + 3 * (CUBE * x * x)),
        ROOT * (6 * (CUBE * x)),
    )  # products of tensors: no new constants


def _gelu_tanh_first(x: Tensor) -> Tensor:
    """½ (1 + t) + ½ x (1 − t²) u′"""
    t, u1, _ = _inner(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * u1


def _gelu_tanh_second(x: Tensor) -> Tensor:
    """(1 − t²) (u′ + ½ x u″ − x t u′²)"""
    t, u1, u2 = _inner(x)
    return (1 - t * t) * (u1 + 0.5 * x * u2 - x * t * u1 * u1)


FUNCTIONS: dict[str, Activation] = {
    "relu": Activation(functional.relu, _step, torch.zeros_like),
    "silu": Activation(functional.silu, _silu_first, _silu_second),
    "gelu": Activation(functional.gelu, _gelu_first, _gelu_second),
    "gelu_tanh": Activation(
        lambda x: functional.gelu(x, approximate="tanh"), _gelu_tanh_first, _gelu_tanh_second
    ),
}


@rule
def activate(X: Tensor, *, function: str) -> tuple[Tensor, ActivationSaved]:
    """Y = f(X)

    The sources of the functions stand in the module's legend, Hendrycks & Gimpel 2016 among them.

    Args:
        X: of any shape.
        function: one of ``FUNCTIONS``.

    Returns:
        Y, of the shape of X, and what :func:`activate_vjp` needs.

    Raises:
        InputError: an unknown function.
        DtypeError: integers.
    """
    require_tensors("activate", X=X)
    require(
        function in FUNCTIONS,
        f"activate knows {', '.join(FUNCTIONS)}",
        repr(function),
        "the name that a library has for it: gelu_new, gelu_pytorch_tanh, swish",
        "gelu_tanh for the first two, silu for the third",
    )
    return FUNCTIONS[function].f(X), ActivationSaved(X, function)


@rule
def activate_jvp(saved: ActivationSaved, X_dot: Tensor) -> Tensor:
    """Ẏ = f′(X) ∘ Ẋ

    Entry by entry.
    """
    return FUNCTIONS[saved.function].first(saved.X) * X_dot


@rule
def activate_vjp(dY: Tensor, saved: ActivationSaved) -> ActivationGradients:
    """dX = f′(X) ∘ dY

    A diagonal Jacobian is its own transpose.
    """
    return ActivationGradients(FUNCTIONS[saved.function].first(saved.X) * dY)


@rule
def activate_vjp_jvp(
    dY: Tensor, saved: ActivationSaved, dY_dot: Tensor, X_dot: Tensor
) -> ActivationGradients:
    """dẊ = f′(X) ∘ dẎ + f″(X) ∘ Ẋ ∘ dY

    The product rule on :func:`activate_vjp`.
    """
    f = FUNCTIONS[saved.function]
    return ActivationGradients(f.first(saved.X) * dY_dot + f.second(saved.X) * X_dot * dY)


ACTIVATION = Operator(activate, activate_jvp, activate_vjp, activate_vjp_jvp)
