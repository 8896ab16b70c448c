"""Softmax over the last axis, with a boolean mask.

    P_ij = M_ij exp S_ij / Σ_k M_ik exp S_ik            Bridle 1990; Vaswani et al. 2017, §3.2.1

S, P (..., n_q, n_k)   mask broadcasts to S, True = may attend.   A fully masked row is 0, and so are its
gradients. The Jacobian of a row, diag(p) − p pᵀ, is symmetric: the tangent and the cotangent are one map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require_mask, require_tensors, rule
from gradderiv.rules._mask import Mask, resolve


class SoftmaxSaved(NamedTuple):
    """Like tanh, softmax needs only its output back."""

    P: Tensor


class SoftmaxGradients(NamedTuple):
    """∂ℓ/∂S."""

    S: Tensor


@rule
def softmax(S: Tensor, *, mask: Mask | Tensor | None = None) -> tuple[Tensor, SoftmaxSaved]:
    """P_ij = M_ij exp S_ij / Σ_k M_ik exp S_ik

    Vaswani et al. 2017, §3.2.1; the row that may attend to nothing is 0 by definition.

    Args:
        S: (..., n_q, n_k), the scores.
        mask: a Mask, or boolean and broadcasting to S; True = may attend.

    Returns:
        P (..., n_q, n_k) and what :func:`softmax_vjp` needs.

    Raises:
        InputError: an empty tensor, a mask that does not broadcast.
        DtypeError: integers; a mask that is not boolean.
    """
    require_tensors("softmax", S=S)
    require_mask("softmax", mask, tuple(S.shape), or_made=True)
    mask = resolve(mask, S.shape, S.device)
    if mask is None:
        P = torch.softmax(S, dim=-1)  # ... n_q n_k
    else:
        hidden = ~mask & mask.any(-1, keepdim=True)  # in rows that see something, so that none is 0/0
        P = torch.softmax(S.masked_fill(hidden, -torch.inf), dim=-1)  # ... n_q n_k
        P = P.masked_fill(~mask, 0.0)  # ... n_q n_k
    return P, SoftmaxSaved(P)


@rule
def softmax_jvp(saved: SoftmaxSaved, S_dot: Tensor) -> Tensor:
    """Ṗ = P ∘ (Ṡ − rowsum(P ∘ Ṡ))

    Row by row (diag(p) − p pᵀ) ṡ; Magnus & Neudecker, ch. 5.
    """
    (P,) = saved
    mean = (P * S_dot).sum(-1, keepdim=True)  # ... n_q 1
    P_dot = P * (S_dot - mean)  # ... n_q n_k
    return P_dot


@rule
def softmax_vjp(dP: Tensor, saved: SoftmaxSaved) -> SoftmaxGradients:
    """dS = P ∘ (dP − δ),   δ = rowsum(P ∘ dP)

    The transpose of a symmetric Jacobian; Dao et al. 2022, app. B.2.
    """
    (P,) = saved
    delta = (P * dP).sum(-1, keepdim=True)  # ... n_q 1
    dS = P * (dP - delta)  # ... n_q n_k
    return SoftmaxGradients(dS)


@rule
def softmax_vjp_jvp(dP: Tensor, saved: SoftmaxSaved, dP_dot: Tensor, S_dot: Tensor) -> SoftmaxGradients:
    """dṠ = Ṗ ∘ (dP − δ) + P ∘ (dṖ − δ̇),   δ̇ = rowsum(Ṗ ∘ dP + P ∘ dṖ)

    The product rule on :func:`softmax_vjp`, line by line.
    """
    (P,) = saved
    P_dot = softmax_jvp(saved, S_dot)  # ... n_q n_k
    delta = (P * dP).sum(-1, keepdim=True)  # ... n_q 1
    delta_dot = (P_dot * dP + P * dP_dot).sum(-1, keepdim=True)  # ... n_q 1
    dS_dot = P_dot * (dP - delta) + P * (dP_dot - delta_dot)  # ... n_q n_k
    return SoftmaxGradients(dS_dot)
