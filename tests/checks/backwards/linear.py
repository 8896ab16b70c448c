"""Causal attention without softmax: features exp(q), exp(k), running sums forward, sums from the end in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


def from_the_end(x: Tensor) -> Tensor:
    """Σ over this position and all later ones."""
    return x.flip(1).cumsum(1).flip(1)


class Linear(Function):
    """o_i = f(q_i)ᵀ Σ_{j≤i} f(k_j) v_jᵀ / f(q_i)ᵀ Σ_{j≤i} f(k_j), f = exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        fq, fk = q.exp(), k.exp()
        state = torch.cumsum(fk.unsqueeze(-1) * v.unsqueeze(-2), dim=1)  # b n d e
        norm = fk.cumsum(dim=1)
        den = (fq * norm).sum(-1, keepdim=True)
        out = torch.einsum("bnd,bnde->bne", fq, state) / den
        ctx.save_for_backward(fq, fk, v, state, norm, den, out)
        ctx.way = way
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        fq, fk, v, state, norm, den, out = ctx.saved_tensors
        d_num = do / den
        d_den = -(d_num * out).sum(-1, keepdim=True)
        if ctx.way == "normaliser-missing":
            d_den.zero_()
        dfq = torch.einsum("bne,bnde->bnd", d_num, state) + d_den * norm
        d_state = fq.unsqueeze(-1) * d_num.unsqueeze(-2)
        d_norm = d_den * fq
        if ctx.way == "sum-not-reversed":
            d_state, d_norm = d_state.cumsum(1), d_norm.cumsum(1)
        else:
            d_state, d_norm = from_the_end(d_state), from_the_end(d_norm)
        dfk = (d_state * v.unsqueeze(-2)).sum(-1) + d_norm
        dv = torch.einsum("bnd,bnde->bne", fk, d_state)
        dk = dfk if ctx.way == "feature-forgotten" else dfk * fk
        return dfq * fq, dk, dv, None


STYLES = (
    style(
        "linear-causal",
        Linear,
        lambda: draw(40, q=(2, 4, 2), k=(2, 4, 2), v=(2, 4, 3)),
        {"normaliser-missing": "q k", "sum-not-reversed": "k v", "feature-forgotten": "k"},
    ),
)
