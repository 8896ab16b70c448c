"""Linear map with bias.

    Y = X W + b                                   Magnus & Neudecker, ch. 5; Giles 2008, §2.2.2

X (..., n, d)   W (d, e)   b (e)   Y (..., n, e)      W is the transpose of ``nn.Linear.weight``
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class LinearSaved(NamedTuple):
    """What the backward pass of :func:`linear` needs."""

    X: Tensor
    W: Tensor
    b: Tensor | None


class LinearGradients(NamedTuple):
    """∂ℓ/∂X, ∂ℓ/∂W, ∂ℓ/∂b (None where there is no bias)."""

    X: Tensor
    W: Tensor
    b: Tensor | None


@rule
def linear(X: Tensor, W: Tensor, b: Tensor | None = None) -> tuple[Tensor, LinearSaved]:
    """Y = X W + b

    Magnus & Neudecker, Matrix Differential Calculus, ch. 5.

    Args:
        X: (..., n, d).
        W: (d, e), the transpose of ``nn.Linear.weight``.
        b: (e), or None.

    Returns:
        Y (..., n, e) and what :func:`linear_vjp` needs.

    Raises:
        InputError: shapes that do not fit, empty tensors.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("linear", X=X, W=W, b=b)
    require(
        X.dim() >= 2 and W.dim() == 2 and X.shape[-1] == W.shape[0],
        "linear needs X (..., n, d) and W (d, e)",
        shapes(X=X, W=W),
        "W is the transpose of nn.Linear.weight, which is (e, d)",
        "pass layer.weight.mT",
    )
    require(
        b is None or b.shape == (W.shape[1],),
        f"linear needs b ({W.shape[1]},)",
        shapes(b=b),
        "the bias of another projection",
        "one entry for each column of W",
    )
    Y = X @ W  # ... n e
    if b is not None:
        Y = Y + b  # ... n e
    return Y, LinearSaved(X, W, b)


@rule
def linear_jvp(saved: LinearSaved, X_dot: Tensor, W_dot: Tensor, b_dot: Tensor | None = None) -> Tensor:
    """Ẏ = Ẋ W + X Ẇ + ḃ

    The product rule; Giles 2008, §2.2.2.
    """
    X, W, _ = saved
    Y_dot = X_dot @ W + X @ W_dot  # ... n e
    if b_dot is not None:
        Y_dot = Y_dot + b_dot  # ... n e
    return Y_dot


@rule
def linear_vjp(dY: Tensor, saved: LinearSaved) -> LinearGradients:
    """dX = dY Wᵀ,   dW = Xᵀ dY,   db = dYᵀ 1

    Giles 2008, §2.2.2. Leading axes are rows of one tall matrix: dW and db are summed over them.
    """
    X, W, b = saved
    # Y was X W + b
    db = None if b is None else rows(dY).sum(0)  # e
    dW = rows(X).mT @ rows(dY)  # d e
    dX = dY @ W.mT  # ... n d
    return LinearGradients(dX, dW, db)


@rule
def linear_vjp_jvp(
    dY: Tensor,
    saved: LinearSaved,
    dY_dot: Tensor,
    X_dot: Tensor,
    W_dot: Tensor,
    b_dot: Tensor | None = None,
) -> LinearGradients:
    """dẊ = dẎ Wᵀ + dY Ẇᵀ,   dẆ = Ẋᵀ dY + Xᵀ dẎ,   dḃ = dẎᵀ 1

    The product rule on :func:`linear_vjp`, line by line. No gradient depends on b.
    """
    X, W, b = saved
    db_dot = None if b is None else rows(dY_dot).sum(0)  # e
    dW_dot = rows(X_dot).mT @ rows(dY) + rows(X).mT @ rows(dY_dot)  # d e
    dX_dot = dY_dot @ W.mT + dY @ W_dot.mT  # ... n d
    return LinearGradients(dX_dot, dW_dot, db_dot)


LINEAR = Operator(linear, linear_jvp, linear_vjp, linear_vjp_jvp)


def rows(X: Tensor) -> Tensor:
    """(..., n, d) as one tall matrix (… · n, d)."""
    return X.reshape(-1, X.shape[-1])
