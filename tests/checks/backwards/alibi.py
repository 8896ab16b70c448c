"""A penalty on the distance, with slopes that are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Alibi(Function):
    """S - slopes ∘ |i - j|, the slopes learned."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, way: str) -> Tensor:
        distance = Alibi.distance(q, k)
        s = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        s = s - slopes.view(1, -1, 1, 1) * distance
        lse = torch.logsumexp(s, -1, keepdim=True)
        out = torch.exp(s - lse) @ v
        ctx.save_for_backward(q, k, v, slopes, out, lse)
        ctx.way = way
        return out

    @staticmethod
    def distance(q: Tensor, k: Tensor) -> Tensor:
        i, j = torch.arange(q.shape[-2], device=q.device), torch.arange(k.shape[-2], device=q.device)
        return (i[:, None] - j[None, :]).abs().to(q.dtype)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, slopes, out, lse = ctx.saved_tensors
        scale, distance = q.shape[-1] ** -0.5, Alibi.distance(q, k)
        s = (q @ k.mT * scale).sub_(slopes[None, :, None, None] * distance)
        if ctx.way == "bias-forgotten":
            s = q @ k.mT * scale
        p = torch.exp(s - lse)
        ds = p * (do @ v.mT - (do * out).sum(-1, keepdim=True))
        d_slopes = (ds * distance).sum(dim=(0, 2, 3))
        if ctx.way == "bias-mean":
            d_slopes = (ds * distance).mean(dim=(0, 2, 3))
        if ctx.way != "sign":
            d_slopes = -d_slopes
        return ds @ k * scale, ds.mT @ q * scale, p.mT @ do, d_slopes, None


STYLES = (
    style(
        "alibi",
        Alibi,
        lambda: draw(23, q=(1, 2, 3, 3), k=(1, 2, 4, 3), v=(1, 2, 4, 2), slopes=(2,)),
        {"bias-forgotten": "q k v slopes", "bias-mean": "slopes", "sign": "slopes"},
    ),
)
