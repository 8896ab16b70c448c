"""Queries and keys are normalised before they meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class QKNorm(Function):
    """Queries and keys through RMSNorm with a gain before the scores."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gain_q: Tensor, gain_k: Tensor, eps: float, way: str
    ) -> Tensor:
        r_q = torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + eps)
        r_k = torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + eps)
        p = torch.softmax((q * r_q * gain_q) @ (k * r_k * gain_k).mT * q.shape[-1] ** -0.5, -1)
        ctx.save_for_backward(q, k, v, gain_q, gain_k, r_q, r_k, p)
        ctx.way = way
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, gain_q, gain_k, r_q, r_k, p = ctx.saved_tensors
        dp = do @ v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        dq, d_gain_q = QKNorm.norm_backward(ds @ (k * r_k * gain_k), q, r_q, gain_q, ctx.way)
        dk, d_gain_k = QKNorm.norm_backward(ds.mT @ (q * r_q * gain_q), k, r_k, gain_k, "right")
        return dq, dk, p.mT @ do, d_gain_q, d_gain_k, None, None

    @staticmethod
    def norm_backward(dy: Tensor, x: Tensor, r: Tensor, gain: Tensor, way: str) -> tuple[Tensor, Tensor]:
        unit = x * r
        d_gain = (dy * unit).flatten(0, -2)
        d_gain = d_gain.mean(0) if way == "bias-mean" else d_gain.sum(0)
        g = dy if way == "norm-gain-missing" else dy * gain
        if way == "norm-no-projection":
            return r * g, d_gain
        return r * (g - unit * (g * unit).mean(-1, keepdim=True)), d_gain


STYLES = (
    style(
        "qk-norm",
        QKNorm,
        lambda: {**draw(26, q=(1, 3, 4), k=(1, 2, 4), v=(1, 2, 3), gain_q=(4,), gain_k=(4,)), "eps": 1e-6},
        {"norm-no-projection": "q", "norm-gain-missing": "q", "bias-mean": "gain_q"},
    ),
)
