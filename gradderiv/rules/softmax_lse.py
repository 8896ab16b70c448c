"""Softmax with its normalizer as a second output, and with learnable sinks.

    lse_i = log( Σ_k M_ik exp S_ik + exp s )      P_ij = M_ij exp(S_ij − lse_i)                 Dao et al. 2022, §3.1; Xiao et al. 2023 and gpt-oss for s

S, P (..., h, n_q, n_k)   lse (..., h, n_q)   sinks: s, (h), a score for nothing in each head   mask broadcasts to S, True = may attend.   δ = rowsum(P ∘ dP).   A row
of P sums to 1 − p, with p = exp(s − lse) what the sink takes, 0 without one. A fully masked row of P is 0, and so are its gradients; its lse is s, or −∞ without a sink.
With ``softmax_dtype`` all of this is done in that type, and P is rounded to the type of S, as transformers' Llama does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_mask, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class SoftmaxLseSaved(NamedTuple):
    """P, and what the sink takes (..., n_q, 1), in the type in which they were computed."""

    P: Tensor
    p: Tensor | None
    sinks: Tensor | None
    dtype: torch.dtype


class SoftmaxLseGradients(NamedTuple):
    """∂ℓ/∂S, ∂ℓ/∂s."""

    S: Tensor
    sinks: Tensor | None


@rule
def softmax_lse(
    S: Tensor,
    sinks: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    softmax_dtype: torch.dtype | None = None,
) -> tuple[tuple[Tensor, Tensor], SoftmaxLseSaved]:
    """P_ij = M_ij exp(S_ij − lse_i),   lse_i = log( Σ_k M_ik exp S_ik + exp s )

    Dao et al. 2022, §3.1; the sink as gpt-oss has it.

    Args:
        S: (..., h, n_q, n_k), the scores.
        sinks: s, (h), or () where there is no axis of heads.
        mask: boolean, broadcasts to S; True = may attend.
        softmax_dtype: the type to compute in; that of S unless given.

    Returns:
        P (..., h, n_q, n_k) in the type of S, lse (..., h, n_q) in ``softmax_dtype``, and what :func:`softmax_lse_vjp` needs.

    Raises:
        InputError: a mask or sinks that do not fit.
        DtypeError: integers; a mask that is not boolean.
    """
    require_tensors("softmax_lse", S=S, **({} if sinks is None else {"sinks": sinks}))
    require_mask("softmax_lse", mask, tuple(S.shape))
    require(
        sinks is None or sinks.shape == (S.shape[-3:-2] if sinks.dim() else ()),
        "softmax_lse needs one sink for each head: sinks (h)",
        shapes(S=S, sinks=sinks),
        "scores without an axis for the heads, or a sink for each key/value head",
        "one number for each query head",
    )
    A, given = (S if softmax_dtype is None else S.to(softmax_dtype)), S.dtype
    if mask is not None:
        some = mask.any(-1, keepdim=True)
        A = A.masked_fill(~mask & some, -torch.inf)  # ... n_q n_k
    p = None
    if sinks is None:
        P, lse = torch.softmax(A, -1), torch.logsumexp(A, -1)  # ... n_q n_k, ... n_q
        if mask is not None:
            P = P.masked_fill(~mask, 0.0)  # ... n_q n_k
            lse = lse.masked_fill(~some.squeeze(-1), -torch.inf)  # ... n_q
    else:
        if mask is not None:  # beside a sink no row is empty
            A = A.masked_fill(~some, -torch.inf)  # ... n_q n_k
        column = sinks.to(A.dtype)[..., None, None].expand(*A.shape[:-1], 1)  # ... n_q 1
        beside = torch.cat([A, column], -1)
        P, p = torch.softmax(beside, -1).split([A.shape[-1], 1], -1)  # ... n_q n_k, ... n_q 1
        lse = torch.logsumexp(beside, -1)  # ... n_q
    return (P.to(given), lse), SoftmaxLseSaved(P, p, sinks, given)


@rule
def softmax_lse_jvp(
    saved: SoftmaxLseSaved, S_dot: Tensor, sinks_dot: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(lse)˙ = rowsum(P ∘ Ṡ) + p ṡ,   Ṗ = P ∘ (Ṡ − (lse)˙)

    exp(S − lse), differentiated.
    """
    P, p, _, given = saved
    S_dot = S_dot.to(P.dtype)  # ... n_q n_k
    mean = (P * S_dot).sum(-1, keepdim=True)  # ... n_q 1
    if p is not None and sinks_dot is not None:
        mean = mean + p * sinks_dot.to(P.dtype)[..., None, None]  # ... n_q 1
    P_dot = P * (S_dot - mean)  # ... n_q n_k
    return P_dot.to(given), mean.squeeze(-1)


@rule
def softmax_lse_vjp(d: tuple[Tensor, Tensor], saved: SoftmaxLseSaved) -> SoftmaxLseGradients:
    """dS = P ∘ (dP − δ + dlse),   ds = Σ p (dlse − δ)

    lse enters every entry of its row: ∂lse/∂S = P; Dao et al. 2022, app. B.2, for the rest.
    """
    P, p, sinks, given = saved
    dP, dlse = d[0].to(P.dtype), d[1].to(P.dtype).unsqueeze(-1)  # ... n_q n_k, ... n_q 1
    back = dlse - (P * dP).sum(-1, keepdim=True)  # ... n_q 1
    dS = P * (dP + back)  # ... n_q n_k
    return SoftmaxLseGradients(dS.to(given), None if p is None else _of_sinks(p * back, sinks))


@rule
def softmax_lse_vjp_jvp(
    d: tuple[Tensor, Tensor],
    saved: SoftmaxLseSaved,
    d_dot: tuple[Tensor, Tensor],
    S_dot: Tensor,
    sinks_dot: Tensor | None = None,
) -> SoftmaxLseGradients:
    """dṠ = Ṗ ∘ (dP − δ + dlse) + P ∘ (dṖ − δ̇ + d(lse)˙),   dṡ = Σ ṗ (dlse − δ) + p (d(lse)˙ − δ̇)

    The product rule on :func:`softmax_lse_vjp`, line by line; ṗ = p (ṡ − (lse)˙).
    """
    P, p, sinks, given = saved
    dP, dlse = d[0].to(P.dtype), d[1].to(P.dtype).unsqueeze(-1)  # ... n_q n_k, ... n_q 1
    dP_dot, dlse_dot = d_dot[0].to(P.dtype), d_dot[1].to(P.dtype).unsqueeze(-1)  # ... n_q n_k, ... n_q 1
    P_dot, lse_dot = softmax_lse_jvp(saved._replace(dtype=P.dtype), S_dot, sinks_dot)  # ... n_q n_k, ... n_q
    back = dlse - (P * dP).sum(-1, keepdim=True)  # ... n_q 1
    back_dot = dlse_dot - (P_dot * dP + P * dP_dot).sum(-1, keepdim=True)  # ... n_q 1
    dS_dot = P_dot * (dP + back) + P * (dP_dot + back_dot)  # ... n_q n_k
    if p is None or sinks_dot is None:
        return SoftmaxLseGradients(dS_dot.to(given), None)
    p_dot = p * (sinks_dot.to(P.dtype)[..., None, None] - lse_dot.unsqueeze(-1))  # ... n_q 1
    return SoftmaxLseGradients(dS_dot.to(given), _of_sinks(p_dot * back + p * back_dot, sinks))


def _of_sinks(rows: Tensor, sinks: Tensor | None) -> Tensor:
    """Summed over batch and queries, in the type of the sinks."""
    assert sinks is not None
    return rows.squeeze(-1).sum(-1).sum_to_size(sinks.shape).to(sinks.dtype)


SOFTMAX_LSE = Operator(softmax_lse, softmax_lse_jvp, softmax_lse_vjp, softmax_lse_vjp_jvp)
