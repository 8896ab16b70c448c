"""Centred rows divided by their standard deviation, with a gain and a shift.

    Y = X̂ ∘ γ + β,   X̂ = r (X − mean(X)),   r = (var(X) + ε)^(−½)                       Ba et al. 2016, eq. 4

X, X̂, Y (..., n, d)   gain (d)   shift (d)   r (..., n, 1), one for each row.   var with 1/d, ε inside the root, as torch has it. The Jacobian of X̂,
r (I − 1 1ᵀ/d − x̂ x̂ᵀ/d), is symmetric.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class LayerNormSaved(NamedTuple):
    """X̂, the inverse standard deviation, the gain, and whether there is a shift."""

    N: Tensor
    r: Tensor
    gain: Tensor
    shifted: bool


class LayerNormGradients(NamedTuple):
    """∂ℓ/∂X, ∂ℓ/∂γ, ∂ℓ/∂β (None where there is no shift)."""

    X: Tensor
    gain: Tensor
    shift: Tensor | None


@rule
def layer_norm(
    X: Tensor, gain: Tensor, shift: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, LayerNormSaved]:
    """Y = X̂ ∘ γ + β,   X̂ = (X − mean(X)) (var(X) + ε)^(−½)

    Ba et al. 2016, eq. 4.

    Args:
        X: (..., n, d).
        gain: γ, (d).
        shift: β, (d), or None.
        eps: ε.

    Returns:
        Y (..., n, d) and what :func:`layer_norm_vjp` needs.

    Raises:
        InputError: a gain or a shift that does not fit.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("layer_norm", X=X, gain=gain, **({} if shift is None else {"shift": shift}))
    require(
        gain.shape == X.shape[-1:] and (shift is None or shift.shape == gain.shape),
        "layer_norm needs a gain (d) and a shift (d) for X (..., n, d)",
        shapes(X=X, gain=gain, shift=shift),
        "the norm of another layer, or one over several axes",
        "one number for each column of X",
    )
    centred = X - X.mean(-1, keepdim=True)  # ... n d
    r = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)  # ... n 1
    N = centred * r  # ... n d
    Y = N * gain  # ... n d
    if shift is not None:
        Y = Y + shift  # ... n d
    return Y, LayerNormSaved(N, r, gain, shift is not None)


@rule
def layer_norm_jvp(
    saved: LayerNormSaved, X_dot: Tensor, gain_dot: Tensor, shift_dot: Tensor | None = None
) -> Tensor:
    """Ẏ = r (Ẋ − mean(Ẋ) − X̂ mean(X̂ ∘ Ẋ)) ∘ γ + X̂ ∘ γ̇ + β̇

    ṙ = −r² mean(X̂ ∘ Ẋ): X̂ is centred.
    """
    N, r, gain, _ = saved
    Y_dot = _through(N, r, X_dot) * gain + N * gain_dot  # ... n d
    return Y_dot if shift_dot is None else Y_dot + shift_dot


@rule
def layer_norm_vjp(dY: Tensor, saved: LayerNormSaved) -> LayerNormGradients:
    """dX = r (dX̂ − mean(dX̂) − X̂ mean(X̂ ∘ dX̂)),   dX̂ = dY ∘ γ,   dγ = Σ dY ∘ X̂,   dβ = Σ dY

    The Jacobian of X̂ is symmetric.
    """
    N, r, gain, shifted = saved
    dshift = dY.sum_to_size(gain.shape) if shifted else None
    dgain = (dY * N).sum_to_size(gain.shape)
    dX = _through(N, r, dY * gain)  # ... n d
    return LayerNormGradients(dX, dgain, dshift)


@rule
def layer_norm_vjp_jvp(
    dY: Tensor,
    saved: LayerNormSaved,
    dY_dot: Tensor,
    X_dot: Tensor,
    gain_dot: Tensor,
    shift_dot: Tensor | None = None,
) -> LayerNormGradients:
    """dẊ = −r m dX + r (dX̂˙ − mean(dX̂˙) − X̂˙ q − X̂ q̇),   m = mean(X̂ ∘ Ẋ),   q = mean(X̂ ∘ dX̂)

    The product rule on :func:`layer_norm_vjp`, line by line; ṙ = −r² m. No gradient depends on β.
    """
    N, r, gain, shifted = saved
    dshift_dot = dY_dot.sum_to_size(gain.shape) if shifted else None
    m = (N * X_dot).mean(-1, keepdim=True)  # ... n 1
    N_dot = _through(N, r, X_dot)  # ... n d
    dgain_dot = (dY_dot * N + dY * N_dot).sum_to_size(gain.shape)
    dN, dN_dot = dY * gain, dY_dot * gain + dY * gain_dot  # ... n d, ... n d
    q = (N * dN).mean(-1, keepdim=True)  # ... n 1
    q_dot = (N_dot * dN + N * dN_dot).mean(-1, keepdim=True)  # ... n 1
    inner_dot = dN_dot - dN_dot.mean(-1, keepdim=True) - N_dot * q - N * q_dot  # ... n d
    dX_dot = r * inner_dot - r * m * _through(N, r, dN)  # ... n d
    return LayerNormGradients(dX_dot, dgain_dot, dshift_dot)


def _through(N: Tensor, r: Tensor, X_dot: Tensor) -> Tensor:
    """r (I − 1 1ᵀ/d − x̂ x̂ᵀ/d) ẋ, row by row."""
    return r * (X_dot - X_dot.mean(-1, keepdim=True) - N * (N * X_dot).mean(-1, keepdim=True))


LAYER_NORM = Operator(layer_norm, layer_norm_jvp, layer_norm_vjp, layer_norm_vjp_jvp)
