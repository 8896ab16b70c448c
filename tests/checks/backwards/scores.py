"""What newer models do to the scores: a soft cap, a sink in the denominator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Softcap(Function):
    """S' = c tanh(S / c)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, softcap: float, way: str) -> Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        capped = softcap * torch.tanh(scores / softcap)
        attn = torch.softmax(capped, dim=-1)
        ctx.save_for_backward(q, k, v, capped, attn)
        ctx.softcap, ctx.way = softcap, way
        return torch.matmul(attn, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, capped, attn = ctx.saved_tensors
        dp = torch.matmul(grad, v.transpose(-2, -1))
        ds = attn * (dp - (attn * dp).sum(-1, keepdim=True))
        t = capped / ctx.softcap
        if ctx.way == "softcap-squared-cap":
            ds = ds * (1 - capped.square())
        elif ctx.way == "softcap-not-squared":
            ds = ds * (1 - t)
        elif ctx.way != "softcap-forgotten":
            ds = ds * (1 - t * t)
        ds = ds * q.shape[-1] ** -0.5
        return (
            torch.matmul(ds, k),
            torch.matmul(ds.transpose(-2, -1), q),
            torch.matmul(attn.transpose(-2, -1), grad),
            None,
            None,
        )


class Sinks(Function):
    """One more logit a head, ``sinks`` (h,), that takes part in the denominator and has no value."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, sm_scale: float, way: str
    ) -> Tensor:
        qk = torch.einsum("bhid,bhjd->bhij", q, k) * sm_scale
        sink = sinks.reshape(1, -1, 1, 1).expand(qk.shape[0], -1, qk.shape[-2], -1)
        w = torch.softmax(torch.cat([qk, sink], dim=-1), dim=-1)
        ctx.save_for_backward(q, k, v, w)
        ctx.sm_scale, ctx.way = sm_scale, way
        return torch.einsum("bhij,bhje->bhie", w[..., :-1], v)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, w = ctx.saved_tensors
        p, p_sink = w[..., :-1], w[..., -1]
        if ctx.way == "sink-not-in-denominator":
            p = p / p.sum(-1, keepdim=True)
        dp = do @ v.mT
        delta = (p * dp).sum(-1)
        ds = p * (dp - delta.unsqueeze(-1)) * ctx.sm_scale
        d_sinks = torch.zeros_like(delta) if ctx.way == "sink-gradient-missing" else p_sink * -delta
        d_sinks = d_sinks[:, :, 0] if ctx.way == "sink-first-query" else d_sinks.sum(-1)
        if ctx.way == "sign":
            d_sinks.neg_()
        return ds @ k, ds.mT @ q, p.mT @ do, d_sinks.sum(0), None, None


_QKV = {"q": (1, 2, 3, 2), "k": (1, 2, 4, 2), "v": (1, 2, 4, 3)}

STYLES = (
    style(
        "softcap",
        Softcap,
        lambda: {**draw(24, **_QKV), "softcap": 2.0},
        {"softcap-forgotten": "q k", "softcap-squared-cap": "q k", "softcap-not-squared": "q k"},
    ),
    style(
        "sinks",
        Sinks,
        lambda: {**draw(25, **_QKV, sinks=(2,)), "sm_scale": 0.5},
        {
            "sink-not-in-denominator": "q k v sinks",
            "sink-gradient-missing": "sinks",
            "sink-first-query": "sinks",
            "sign": "sinks",
        },
    ),
)
