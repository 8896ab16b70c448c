"""The scores of queries against keys.

    S = τ Q Kᵀ                                   Vaswani et al. 2017, eq. 1

Q (..., n_q, d_k)   K (..., n_k, d_k)   S (..., n_q, n_k)   τ = scale, 1/√d_k unless given
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class ScoresSaved(NamedTuple):
    """The arguments, and τ."""

    Q: Tensor
    K: Tensor
    scale: float


class ScoresGradients(NamedTuple):
    """∂ℓ/∂Q, ∂ℓ/∂K."""

    Q: Tensor
    K: Tensor


@rule
def scores(Q: Tensor, K: Tensor, *, scale: float | None = None) -> tuple[Tensor, ScoresSaved]:
    """S = τ Q Kᵀ

    Vaswani et al. 2017, eq. 1.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        scale: τ, 1/√d_k unless given.

    Returns:
        S (..., n_q, n_k) and what :func:`scores_vjp` needs.

    Raises:
        InputError: shapes that do not fit.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("scores", Q=Q, K=K)
    require(
        min(Q.dim(), K.dim()) >= 2 and Q.shape[-1] == K.shape[-1] and Q.shape[:-2] == K.shape[:-2],
        "scores need Q (..., n_q, d_k) and K (..., n_k, d_k) with equal leading axes",
        shapes(Q=Q, K=K),
        "queries and keys of different widths, or another number of heads or batches",
        "Q and K share their last axis, d_k, and every axis before the last two",
    )
    scale = Q.shape[-1] ** -0.5 if scale is None else scale
    return scale * Q @ K.mT, ScoresSaved(Q, K, scale)


@rule
def scores_jvp(saved: ScoresSaved, Q_dot: Tensor, K_dot: Tensor) -> Tensor:
    """Ṡ = τ (Q̇ Kᵀ + Q K̇ᵀ)

    The product rule.
    """
    Q, K, scale = saved
    return scale * (Q_dot @ K.mT + Q @ K_dot.mT)


@rule
def scores_vjp(dS: Tensor, saved: ScoresSaved) -> ScoresGradients:
    """dQ = τ dS K,   dK = τ dSᵀ Q

    Dao et al. 2022, app. B.2.
    """
    Q, K, scale = saved
    dQ = scale * dS @ K  # ... n_q d_k
    dK = scale * dS.mT @ Q  # ... n_k d_k
    return ScoresGradients(dQ, dK)


@rule
def scores_vjp_jvp(
    dS: Tensor, saved: ScoresSaved, dS_dot: Tensor, Q_dot: Tensor, K_dot: Tensor
) -> ScoresGradients:
    """dQ̇ = τ (dṠ K + dS K̇),   dK̇ = τ (dṠᵀ Q + dSᵀ Q̇)

    The product rule on :func:`scores_vjp`.
    """
    Q, K, scale = saved
    dQ_dot = scale * (dS_dot @ K + dS @ K_dot)  # ... n_q d_k
    dK_dot = scale * (dS_dot.mT @ Q + dS.mT @ Q_dot)  # ... n_k d_k
    return ScoresGradients(dQ_dot, dK_dot)


SCORES = Operator(scores, scores_jvp, scores_vjp, scores_vjp_jvp)
