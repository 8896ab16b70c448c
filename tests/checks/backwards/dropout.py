"""Dropout of the probabilities with a mask that is given, kept entries divided by 1 - p."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Dropout(Function):
    """keep (b, h, n_q, n_k), True where a probability survives."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, p_drop: float, way: str) -> Tensor:
        scale = q.shape[-1] ** -0.5
        attn = torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)
        dropped = attn * keep / (1.0 - p_drop)
        ctx.save_for_backward(q, k, v, attn, keep)
        ctx.scale, ctx.p_drop, ctx.way = scale, p_drop, way
        return dropped @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, attn, keep = ctx.saved_tensors
        way, rest = ctx.way, 1.0 / (1.0 - ctx.p_drop)
        dropped = attn if way == "dropout-not-in-dV" else (attn * keep).mul_(rest)
        dv = dropped.transpose(-2, -1) @ do
        d_dropped = do @ v.transpose(-2, -1)
        d_attn = d_dropped * rest if way == "dropout-not-in-dP" else d_dropped * keep * rest
        if way == "dropout-rate-missing":
            d_attn = d_dropped * keep
        delta = (attn * (d_dropped if way == "delta-without-dropout" else d_attn)).sum(-1, keepdim=True)
        ds = attn * (d_attn - delta) * ctx.scale
        return ds @ k, ds.transpose(-2, -1) @ q, dv, None, None, None


def _inputs() -> dict[str, Any]:
    keep = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.25
    return {**draw(20, q=(1, 2, 3, 2), k=(1, 2, 4, 2), v=(1, 2, 4, 3)), "keep": keep, "p_drop": 0.25}


STYLES = (
    style(
        "dropout",
        Dropout,
        _inputs,
        {
            "dropout-not-in-dV": "v",
            "dropout-not-in-dP": "q k",
            "dropout-rate-missing": "q k",
            "delta-without-dropout": "q k",
        },
    ),
)
