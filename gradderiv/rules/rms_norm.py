"""Division by the root mean square, with a gain; of queries and keys: QK-norm.

    Y = X̂ ∘ (o + γ),   X̂ = r X,   r = (mean(x²) + ε)^(−½)                Zhang & Sennrich 2019; of Q and K: Henry et al. 2020, Qwen3

X, X̂, Y (..., n, d)   gain (d), or what broadcasts to X   r (..., n, 1), one for each row.   ε inside the root, as transformers and torch have it. Henry et
al. divide by the norm and scale by g: X̂/√d, so that scale = g/d. offset: o, 0 unless given; 1 where a model stores the gain as 1 + γ (Gemma).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class RmsNormSaved(NamedTuple):
    """X̂, the inverse root mean square, and what multiplies X̂: o + γ."""

    N: Tensor
    r: Tensor
    gain: Tensor


class RmsNormGradients(NamedTuple):
    """∂ℓ/∂X, ∂ℓ/∂γ."""

    X: Tensor
    gain: Tensor


@rule
def rms_norm(
    X: Tensor, gain: Tensor, *, eps: float = 1e-6, offset: float = 0.0
) -> tuple[Tensor, RmsNormSaved]:
    """Y = X̂ ∘ (o + γ),   X̂ = X (mean(x²) + ε)^(−½)

    Zhang & Sennrich 2019, eq. 4.

    Args:
        X: (..., n, d).
        gain: γ, (d), or what broadcasts to X.
        eps: ε.
        offset: o, 1 where the gain is stored as 1 + γ.

    Returns:
        Y (..., n, d) and what :func:`rms_norm_vjp` needs.

    Raises:
        InputError: a gain that does not fit, a negative ε.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("rms_norm", X=X, gain=gain)
    try:
        fits = torch.broadcast_shapes(gain.shape, X.shape) == X.shape
    except RuntimeError:
        fits = False
    require(
        fits,
        "rms_norm needs a gain that broadcasts to X",
        shapes(X=X, gain=gain),
        "the gain of a whole projection for that of one head, or the reverse",
        "gain (d); one for each head: gain.unflatten(-1, (h, 1, -1))",
    )
    require(
        eps >= 0,
        "rms_norm needs ε, at least 0",
        f"eps={eps}",
        "a sign, or the exponent instead of the number",
        "eps=1e-6",
    )
    r = torch.rsqrt((X * X).mean(-1, keepdim=True) + eps)  # ... n 1
    N = X * r  # ... n d
    gain = gain + offset if offset else gain
    return N * gain, RmsNormSaved(N, r, gain)


@rule
def rms_norm_jvp(saved: RmsNormSaved, X_dot: Tensor, gain_dot: Tensor) -> Tensor:
    """Ẏ = r (Ẋ − X̂ mean(X̂ ∘ Ẋ)) ∘ γ + X̂ ∘ γ̇

    ṙ = −r² mean(X̂ ∘ Ẋ), with ε or without.
    """
    N, r, gain = saved
    N_dot = r * (X_dot - N * (N * X_dot).mean(-1, keepdim=True))  # ... n d
    return N_dot * gain + N * gain_dot


@rule
def rms_norm_vjp(dY: Tensor, saved: RmsNormSaved) -> RmsNormGradients:
    """dX = r (dX̂ − X̂ mean(X̂ ∘ dX̂)),   dX̂ = dY ∘ γ,   dγ = Σ dY ∘ X̂

    The Jacobian of X̂ is symmetric; Zhang & Sennrich 2019, §4.
    """
    N, r, gain = saved
    dgain = (dY * N).sum_to_size(gain.shape)
    dN = dY * gain  # ... n d
    dX = r * (dN - N * (N * dN).mean(-1, keepdim=True))  # ... n d
    return RmsNormGradients(dX, dgain)


@rule
def rms_norm_vjp_jvp(
    dY: Tensor, saved: RmsNormSaved, dY_dot: Tensor, X_dot: Tensor, gain_dot: Tensor
) -> RmsNormGradients:
    """dẊ = −r m (dX̂ − X̂ q) r + r (dX̂˙ − X̂˙ q − X̂ q̇),   m = mean(X̂ ∘ Ẋ),   q = mean(X̂ ∘ dX̂)

    The product rule on :func:`rms_norm_vjp`, line by line; ṙ = −r² m.
    """
    N, r, gain = saved
    m = (N * X_dot).mean(-1, keepdim=True)  # ... n 1
    N_dot = r * (X_dot - N * m)  # ... n d
    dgain_dot = (dY_dot * N + dY * N_dot).sum_to_size(gain.shape)
    dN, dN_dot = dY * gain, dY_dot * gain + dY * gain_dot
    q = (N * dN).mean(-1, keepdim=True)  # ... n 1
    q_dot = (N_dot * dN + N * dN_dot).mean(-1, keepdim=True)  # ... n 1
    dX_dot = r * (dN_dot - N_dot * q - N * q_dot - r * m * (dN - N * q))  # ... n d
    return RmsNormGradients(dX_dot, dgain_dot)


RMS_NORM = Operator(rms_norm, rms_norm_jvp, rms_norm_vjp, rms_norm_vjp_jvp)
