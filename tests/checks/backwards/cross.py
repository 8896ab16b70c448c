"""Cross-attention with all four projections inside one Function, heads and all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Cross(Function):
    """x (n, d_model) attends to ``context`` (m, d_context); weights (d_in, h·d), joined by W_O (h·d_v, d_out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        context: Tensor,
        W_Q: Tensor,
        W_K: Tensor,
        W_V: Tensor,
        W_O: Tensor,
        h: int,
        way: str,
    ) -> Tensor:
        Q, K, V = (Cross.split(t, h) for t in (x @ W_Q, context @ W_K, context @ W_V))
        scale = Q.shape[-1] ** -0.5
        P = torch.softmax(scale * Q @ K.mT, dim=-1)
        concat = Cross.join(P @ V)
        ctx.save_for_backward(x, context, W_Q, W_K, W_V, W_O, Q, K, V, P, concat)
        ctx.h, ctx.scale, ctx.way = h, scale, way
        return torch.mm(concat, W_O)

    @staticmethod
    def split(t: Tensor, h: int) -> Tensor:
        return t.view(t.shape[0], h, -1).permute(1, 0, 2)

    @staticmethod
    def join(t: Tensor) -> Tensor:
        return t.permute(1, 0, 2).reshape(t.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> Any:
        x, context, W_Q, W_K, W_V, W_O, Q, K, V, P, concat = ctx.saved_tensors
        way, h = ctx.way, ctx.h
        scale = x.shape[-1] ** -0.5 if way == "scale-model" else ctx.scale
        dW_O = concat.t() @ dY
        if way == "head-dropped":
            dW_O = torch.cat((dW_O[: len(dW_O) // h], torch.zeros_like(dW_O[len(dW_O) // h :])))
        dO = Cross.split(dY @ W_O.t(), h)
        if way == "heads-permuted":
            dO = dO.flip(0)
        dV = P.mT @ dO
        dP = dO @ V.mT
        dS = P * (dP - (P * dP).sum(-1, keepdim=True))
        dQ, dK, dV = (Cross.join(t) for t in (scale * dS @ K, scale * dS.mT @ Q, dV))
        dW_Q, dW_K, dW_V = x.t() @ dQ, context.t() @ dK, context.t() @ dV
        dx = dQ @ W_Q.t()
        d_context = dV @ W_V.t()
        if way != "x-path":
            d_context += dK @ W_K.t()
        if way == "entry-too-large":
            dW_Q[0, 1] *= 1.1
        return dx, d_context, dW_Q, dW_K, dW_V, dW_O, None, None


STYLES = (
    style(
        "cross",
        Cross,
        lambda: {
            **draw(31, x=(3, 3), context=(4, 2), W_Q=(3, 4), W_K=(2, 4), W_V=(2, 6), W_O=(6, 5)),
            "h": 2,
        },
        {
            "scale-model": "x context W_Q W_K",
            "head-dropped": "W_O",
            "heads-permuted": "x context W_Q W_K W_V",
            "x-path": "context",
            "entry-too-large": "W_Q",
        },
    ),
)
