"""Scaled dot-product attention, one head or any batch of heads.

    S = τ Q Kᵀ + bias,   P = softmax(S),   O = P V            Vaswani et al. 2017, eq. 1

Q (..., n_q, d_k)   K (..., n_k, d_k)   V (..., n_k, d_v)   S, P (..., n_q, n_k)   O (..., n_q, d_v)
τ = scale, 1/√d_k unless given.   mask, bias broadcast to S; mask is boolean, True = may attend.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import (
    require,
    require_broadcast,
    require_mask,
    require_tensors,
    rule,
    shapes,
)
from gradderiv.rules._mask import Mask, resolve
from gradderiv.rules.softmax import (
    SoftmaxSaved,
    softmax,
    softmax_jvp,
    softmax_vjp,
    softmax_vjp_jvp,
)


class AttentionSaved(NamedTuple):
    """Every intermediate of :func:`attention` under its name."""

    Q: Tensor
    K: Tensor
    V: Tensor
    bias: Tensor | None
    S: Tensor
    P: Tensor
    O: Tensor
    scale: float
    mask: Tensor | None


class AttentionGradients(NamedTuple):
    """∂ℓ/∂Q, ∂ℓ/∂K, ∂ℓ/∂V, ∂ℓ/∂bias (None where there is no bias)."""

    Q: Tensor
    K: Tensor
    V: Tensor
    bias: Tensor | None


@rule
def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, AttentionSaved]:
    """O = softmax(τ Q Kᵀ + bias) V

    Vaswani et al. 2017, eq. 1.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v).
        scale: τ, 1/√d_k unless given.
        mask: a Mask, or boolean and broadcasting to the scores (..., n_q, n_k); True = may attend. A fully masked row gives 0.
        bias: broadcasts to the scores; added after scaling.

    Returns:
        O (..., n_q, d_v) and what :func:`attention_vjp` needs.

    Raises:
        InputError: shapes that do not fit, empty tensors.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    require_attention(Q, K, V, mask, bias)
    mask = resolve(mask, (*Q.shape[:-1], K.shape[-2]), Q.device)
    scale = Q.shape[-1] ** -0.5 if scale is None else scale
    S = scale * Q @ K.mT  # ... n_q n_k
    if bias is not None:
        S = S + bias  # ... n_q n_k
    P, _ = softmax(S, mask=mask)  # ... n_q n_k
    O = P @ V  # ... n_q d_v
    return O, AttentionSaved(Q, K, V, bias, S, P, O, scale, mask)


@rule
def attention_jvp(
    saved: AttentionSaved,
    Q_dot: Tensor,
    K_dot: Tensor,
    V_dot: Tensor,
    bias_dot: Tensor | None = None,
) -> Tensor:
    """Ṡ = τ (Q̇ Kᵀ + Q K̇ᵀ) + (bias)˙,   Ȯ = Ṗ V + P V̇

    The product rule on eq. 1 of Vaswani et al. 2017.
    """
    Q, K, V, P, scale = saved.Q, saved.K, saved.V, saved.P, saved.scale
    S_dot = scale * (Q_dot @ K.mT + Q @ K_dot.mT)  # ... n_q n_k
    if bias_dot is not None:
        S_dot = S_dot + bias_dot  # ... n_q n_k
    P_dot = softmax_jvp(SoftmaxSaved(P), S_dot)  # ... n_q n_k
    O_dot = P_dot @ V + P @ V_dot  # ... n_q d_v
    return O_dot


@rule
def attention_vjp(dO: Tensor, saved: AttentionSaved) -> AttentionGradients:
    """dV = Pᵀ dO,   dS = P ∘ (dO Vᵀ − δ),   dQ = τ dS K,   dK = τ dSᵀ Q

    Dao et al. 2022, app. B.2.
    """
    Q, K, V, P, scale = saved.Q, saved.K, saved.V, saved.P, saved.scale
    # O was P V
    dV = P.mT @ dO  # ... n_k d_v
    dP = dO @ V.mT  # ... n_q n_k
    # P was softmax(S): like tanh, it needs only its output back
    (dS,) = softmax_vjp(dP, SoftmaxSaved(P))  # ... n_q n_k
    # S was τ Q Kᵀ + bias
    dbias = None if saved.bias is None else dS.sum_to_size(saved.bias.shape)
    dQ = scale * dS @ K  # ... n_q d_k
    dK = scale * dS.mT @ Q  # ... n_k d_k
    return AttentionGradients(dQ, dK, dV, dbias)


@rule
def attention_vjp_jvp(
    dO: Tensor,
    saved: AttentionSaved,
    dO_dot: Tensor,
    Q_dot: Tensor,
    K_dot: Tensor,
    V_dot: Tensor,
    bias_dot: Tensor | None = None,
) -> AttentionGradients:
    """dQ̇ = τ (dṠ K + dS K̇),   dK̇ = τ (dṠᵀ Q + dSᵀ Q̇),   dV̇ = Ṗᵀ dO + Pᵀ dȮ

    The product rule on :func:`attention_vjp`, line by line. All of second order: along u on (dQ, dK, dV) and
    with dȮ = 0 it is the double backward with respect to Q, K, V.
    """
    Q, K, V, P, scale = saved.Q, saved.K, saved.V, saved.P, saved.scale
    S_dot = scale * (Q_dot @ K.mT + Q @ K_dot.mT)  # ... n_q n_k
    if bias_dot is not None:
        S_dot = S_dot + bias_dot  # ... n_q n_k
    P_dot = softmax_jvp(SoftmaxSaved(P), S_dot)  # ... n_q n_k
    # dV was Pᵀ dO, dP was dO Vᵀ
    dV_dot = P_dot.mT @ dO + P.mT @ dO_dot  # ... n_k d_v
    dP = dO @ V.mT  # ... n_q n_k
    dP_dot = dO_dot @ V.mT + dO @ V_dot.mT  # ... n_q n_k
    # dS was P ∘ (dP − δ)
    (dS,) = softmax_vjp(dP, SoftmaxSaved(P))  # ... n_q n_k
    (dS_dot,) = softmax_vjp_jvp(dP, SoftmaxSaved(P), dP_dot, S_dot)  # ... n_q n_k
    # dQ was τ dS K, dK was τ dSᵀ Q
    dbias_dot = None if saved.bias is None else dS_dot.sum_to_size(saved.bias.shape)
    dQ_dot = scale * (dS_dot @ K + dS @ K_dot)  # ... n_q d_k
    dK_dot = scale * (dS_dot.mT @ Q + dS.mT @ Q_dot)  # ... n_k d_k
    return AttentionGradients(dQ_dot, dK_dot, dV_dot, dbias_dot)


def require_attention(
    Q: Tensor, K: Tensor, V: Tensor, mask: Mask | Tensor | None, bias: Tensor | None
) -> None:
    require_tensors("attention", Q=Q, K=K, V=V, bias=bias)
    asked = "attention needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)"
    came = shapes(Q=Q, K=K, V=V)
    require(
        min(Q.dim(), K.dim(), V.dim()) >= 2,
        asked,
        came,
        "a vector for a matrix of one row",
        "Q.unsqueeze(-2)",
    )
    require(
        Q.shape[-1] == K.shape[-1],
        asked,
        came,
        "queries and keys of different widths",
        "Q and K share their last axis, d_k",
    )
    require(
        K.shape[-2] == V.shape[-2],
        asked,
        came,
        "another number of keys than of values",
        "K and V share their next to last axis, n_k",
    )
    require(
        Q.shape[:-2] == K.shape[:-2] == V.shape[:-2],
        asked,
        came,
        "different leading axes (batch, heads); grouped key/value heads are not repeated by this rule",
        "K.repeat_interleave(h // h_kv, -3), or K.expand(…)",
    )
    scores = (*Q.shape[:-1], K.shape[-2])
    require_mask("attention", mask, scores, or_made=True)
    if bias is not None:
        require_broadcast("attention", "bias", bias, scores)
