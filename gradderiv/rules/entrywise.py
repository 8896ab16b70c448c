"""Sum and product of two tensors of one shape: a residual, a gate.

    Y = A + B      dA = dB = dY                                          He et al. 2015, eq. 1
    Y = A ∘ B      dA = dY ∘ B,   dB = dY ∘ A                             Shazeer 2020, eq. 6

A, B, Y (..., n, d)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class EntrywiseSaved(NamedTuple):
    """The factors."""

    A: Tensor
    B: Tensor


class EntrywiseGradients(NamedTuple):
    """∂ℓ/∂A, ∂ℓ/∂B."""

    A: Tensor
    B: Tensor


@rule
def add(A: Tensor, B: Tensor) -> tuple[Tensor, None]:
    """Y = A + B

    He et al. 2015, eq. 1.

    Args:
        A: (..., n, d), the residual stream.
        B: likewise, what is added to it.

    Returns:
        Y (..., n, d); the backward pass needs nothing.

    Raises:
        InputError: different shapes.
        DtypeError: integers, several dtypes or devices.
    """
    _require_alike("add", A, B)
    return A + B, None


@rule
def add_jvp(saved: None, A_dot: Tensor, B_dot: Tensor) -> Tensor:
    """Ẏ = Ȧ + Ḃ

    A sum is linear.
    """
    return A_dot + B_dot


@rule
def add_vjp(dY: Tensor, saved: None) -> EntrywiseGradients:
    """dA = dY,   dB = dY

    Both paths get the whole gradient.
    """
    return EntrywiseGradients(dY, dY)


@rule
def add_vjp_jvp(dY: Tensor, saved: None, dY_dot: Tensor, A_dot: Tensor, B_dot: Tensor) -> EntrywiseGradients:
    """dȦ = dẎ,   dḂ = dẎ

    A sum is linear.
    """
    return EntrywiseGradients(dY_dot, dY_dot)


@rule
def multiply(A: Tensor, B: Tensor) -> tuple[Tensor, EntrywiseSaved]:
    """Y = A ∘ B

    Shazeer 2020, eq. 6.

    Args:
        A: (..., n, d), the gate.
        B: likewise.

    Returns:
        Y (..., n, d) and what :func:`multiply_vjp` needs.

    Raises:
        InputError: different shapes.
        DtypeError: integers, several dtypes or devices.
    """
    _require_alike("multiply", A, B)
    return A * B, EntrywiseSaved(A, B)


@rule
def multiply_jvp(saved: EntrywiseSaved, A_dot: Tensor, B_dot: Tensor) -> Tensor:
    """Ẏ = Ȧ ∘ B + A ∘ Ḃ

    The product rule.
    """
    return A_dot * saved.B + saved.A * B_dot


@rule
def multiply_vjp(dY: Tensor, saved: EntrywiseSaved) -> EntrywiseGradients:
    """dA = dY ∘ B,   dB = dY ∘ A

    ⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩.
    """
    return EntrywiseGradients(dY * saved.B, dY * saved.A)


@rule
def multiply_vjp_jvp(
    dY: Tensor, saved: EntrywiseSaved, dY_dot: Tensor, A_dot: Tensor, B_dot: Tensor
) -> EntrywiseGradients:
    """dȦ = dẎ ∘ B + dY ∘ Ḃ,   dḂ = dẎ ∘ A + dY ∘ Ȧ

    The product rule on :func:`multiply_vjp`.
    """
    return EntrywiseGradients(dY_dot * saved.B + dY * B_dot, dY_dot * saved.A + dY * A_dot)


ADD = Operator(add, add_jvp, add_vjp, add_vjp_jvp)
MULTIPLY = Operator(multiply, multiply_jvp, multiply_vjp, multiply_vjp_jvp)


def _require_alike(where: str, A: Tensor, B: Tensor) -> None:
    require_tensors(where, A=A, B=B)
    require(
        A.shape == B.shape,
        f"{where} needs two tensors of one shape",
        shapes(A=A, B=B),
        "a projection back to another width than that of the residual stream",
        "W_O and the last matrix of the feed-forward end in d_model columns",
    )
