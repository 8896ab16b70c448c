"""All query heads share one key/value head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class MultiQuery(Function):
    """One key/value head, without a head axis: k (b, n, d) broadcasts, and backward sums it away."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        p = torch.softmax(q @ k.mT.unsqueeze(1) * q.shape[-1] ** -0.5, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.way = way
        return p @ v.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        b, h, n, d = q.shape
        dp = do @ v.unsqueeze(1).mT
        ds = (dp - (dp * p).sum(-1, keepdim=True)) * p * d**-0.5
        dq = ds @ k.unsqueeze(1)
        dk = ds.reshape(b, h * n, -1).mT @ q.reshape(b, h * n, d)  # heads and queries are one long sum
        dv = (p.mT @ do).sum(dim=1)
        if ctx.way == "gqa-mean":
            dk = dk / h
        if ctx.way == "gqa-no-sum":
            dv = p[:, 0].mT @ do[:, 0]
        return dq, dk, dv, None


STYLES = (
    style(
        "multi-query",
        MultiQuery,
        lambda: draw(19, q=(2, 3, 2, 4), k=(2, 3, 4), v=(2, 3, 2)),
        {"gqa-mean": "k", "gqa-no-sum": "v"},
    ),
)
