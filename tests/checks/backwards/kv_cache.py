"""Keys and values of the past, cached and concatenated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Cache(Function):
    """New queries against past and new keys; causal, with the offset of the past."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, way: str
    ) -> Tensor:
        keys, values = torch.cat((past_k, k), dim=-2), torch.cat((past_v, v), dim=-2)
        past = past_k.shape[-2]
        i = torch.arange(q.shape[-2], device=q.device).unsqueeze(1) + past
        seen = torch.arange(keys.shape[-2], device=q.device).unsqueeze(0) <= i
        scores = torch.matmul(q, keys.transpose(-1, -2)) / q.shape[-1] ** 0.5
        p = torch.softmax(scores.masked_fill(torch.logical_not(seen), float("-inf")), dim=-1)
        ctx.save_for_backward(q, keys, values, p)
        ctx.past, ctx.way = past, way
        return torch.matmul(p, values)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, keys, values, p = ctx.saved_tensors
        past, new = ctx.past, keys.shape[-2] - ctx.past
        dp = torch.matmul(do, values.transpose(-1, -2))
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        dkeys, dvalues = torch.matmul(ds.transpose(-1, -2), q), torch.matmul(p.transpose(-1, -2), do)
        if ctx.way == "cache-order":  # as if the past came last
            dk, d_past_k = dkeys.split((new, past), dim=-2)
        else:
            d_past_k, dk = dkeys.split((past, new), dim=-2)
        d_past_v, dv = dvalues.narrow(-2, 0, past), dvalues.narrow(-2, past, new)
        if ctx.way == "none-returned":
            d_past_k = d_past_v = None
        if ctx.way == "cotangent-ignored":  # of all queries but the last
            dv = p[..., -1:, past:].transpose(-1, -2) @ do[..., -1:, :]
        return torch.matmul(ds, keys), dk, dv, d_past_k, d_past_v, None


STYLES = (
    style(
        "kv-cache",
        Cache,
        lambda: draw(30, q=(2, 2, 3), k=(2, 2, 3), v=(2, 2, 2), past_k=(2, 3, 3), past_v=(2, 3, 2)),
        {"cache-order": "k past_k", "none-returned": "past_k past_v", "cotangent-ignored": "v"},
    ),
)
